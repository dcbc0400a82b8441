//! Replacing.

use super::{Input, misplaced};
use crate::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes a file aside in the folder of `path`, syncs it and renames it into place.
///
/// # Errors
/// [`Error::Misplaced`] when `path` is a link, a device or anything but a regular file, [`Error::Io`] naming `path`, or what `fill` gives;
/// nothing is left behind in either case.
pub fn write_aside(path: &Path, fill: impl FnOnce(&mut BufWriter<&File>) -> Result<(), Error>) -> Result<(), Error> {
    let io = |e| Error::io(path, e);
    regular_or_absent(path)?;
    let folder = parent(path);
    let mut builder = tempfile::Builder::new();
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temp = builder.prefix(".fp8c-").tempfile_in(folder).map_err(|e| io(without_its_path(e)))?;
    let mut out = BufWriter::with_capacity(1 << 20, temp.as_file());
    fill(&mut out)?;
    out.flush().map_err(io)?;
    drop(out);
    temp.as_file().sync_all().map_err(io)?;
    temp.persist(path).map_err(|e| io(e.error))?;
    sync_folder(folder).map_err(io)
}

/// The operating system's error without the name of the temporary file, which says nothing to anybody.
fn without_its_path(e: std::io::Error) -> std::io::Error {
    let cause = e.get_ref().and_then(|inner| inner.source()).and_then(|s| s.downcast_ref::<std::io::Error>());
    cause.and_then(std::io::Error::raw_os_error).map_or(e, std::io::Error::from_raw_os_error)
}

/// A rename replaces a link, not what it points to, and a device node, not what it drives.
fn regular_or_absent(path: &Path) -> Result<bool, Error> {
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_file() => Ok(true),
        Ok(about) => Err(misplaced(path, about.file_type(), "a file that can be replaced")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// What an output replaces: earlier results of its kind, never anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaces {
    Plan,
    /// What [`crate::tensors::write_tensors`] wrote.
    Tensors,
    /// A JSON model.
    Model,
    /// A training's log.
    Log,
    /// An ONNX file that was exported, and the weights beside it.
    Onnx,
    /// A table of offsets.
    Offsets,
    /// A schedule of a bare graph.
    Schedule,
    /// A page of a plan.
    Page,
    /// A drawing of step times.
    Curve,
}

/// What exported ONNX files begin with: an entry of their metadata, `made_by: fp8c`, which protocol buffers permit in any place.
pub const EXPORTED_ONNX: &[u8] = b"\x72\x0f\x0a\x07made_by\x12\x04fp8c";
/// What the files of weights beside them begin with.
pub const EXPORTED_WEIGHTS: &[u8] = b"fp8c weights\n";

/// Bytes that tell what a file is.
const HEAD: u64 = 4096;

impl Replaces {
    /// Checks, before any work is done for it, that an output may be written: `path` is absent, empty, or an earlier result of this kind.
    ///
    /// # Errors
    /// [`Error::Misplaced`] for links, devices and the like, [`Error::Kept`] for a file of another kind, [`Error::Io`] also without the folder.
    pub fn check(self, path: &Path) -> Result<(), Error> {
        if !regular_or_absent(path)? {
            // What cannot be written there is better known before than after the work.
            return fs::metadata(parent(path)).map(|_| ()).map_err(|e| Error::io(path, e));
        }
        let file = Input::open(path)?;
        let head = file.read(0..file.bytes().min(HEAD))?;
        if head.is_empty() || self.recognises(&head) {
            return Ok(());
        }
        Err(Error::Kept { path: path.to_path_buf(), wanted: self.noun() })
    }

    fn recognises(self, head: &[u8]) -> bool {
        let holds = |text: &str| head.windows(text.len()).any(|w| w == text.as_bytes());
        match self {
            // The local header of the first entry of the archive, with its name.
            Replaces::Plan => head.starts_with(b"PK\x03\x04") && head.get(30..).is_some_and(|h| h.starts_with(b"plan.json")),
            Replaces::Tensors => head.get(8) == Some(&b'{') && holds(crate::tensors::MADE_BY),
            Replaces::Model => head.trim_ascii_start().starts_with(b"{") && holds("\"fp8c-graph\""),
            Replaces::Log => head.starts_with(b"{\"step\":"),
            Replaces::Onnx => head.starts_with(EXPORTED_ONNX) || head.starts_with(EXPORTED_WEIGHTS),
            Replaces::Schedule => head.starts_with(b"{\"cost\":") && holds("\"schedule\":["),
            Replaces::Page => holds("<meta name=\"generator\" content=\"fp8c\">"),
            Replaces::Curve => head.starts_with(b"<svg ") && holds("<!-- fp8c curve -->"),
            Replaces::Offsets => head.starts_with(b"id,offset\n"),
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Replaces::Plan => "a plan",
            Replaces::Tensors => "tensors that fp8c wrote",
            Replaces::Model => "a JSON model",
            Replaces::Log => "the log of a training",
            Replaces::Onnx => "a model that fp8c exported",
            Replaces::Offsets => "a table of offsets",
            Replaces::Schedule => "a schedule",
            Replaces::Page => "a page that fp8c wrote",
            Replaces::Curve => "a drawing that fp8c wrote",
        }
    }
}

/// Whether two paths lead to one file, by whatever names.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |p: &Path| fs::metadata(p).ok().map(|m| (m.dev(), m.ino()));
    id(a).is_some_and(|id_a| Some(id_a) == id(b))
}

/// The folder that holds `path`; `.` for a bare name.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Makes renames in a folder survive a power cut.
pub(crate) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn neither_a_link_nor_what_it_points_to_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, b"of value").unwrap();
        symlink(&real, &link).unwrap();
        let said = write_aside(&link, |_| Ok(())).unwrap_err().to_string();
        assert!(said.ends_with("link is a symbolic link, not a file that can be replaced"), "{said}");
        assert!(link.is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"of value");
        // A link that leads nowhere is one all the same.
        fs::remove_file(&real).unwrap();
        assert!(write_aside(&link, |_| Ok(())).is_err() && link.is_symlink());
        assert!(write_aside(folder.path(), |_| Ok(())).unwrap_err().to_string().contains("is a folder"));
    }

    #[test]
    fn only_results_of_the_same_kind_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it");
        let plan = [&b"PK\x03\x04"[..], &[0; 26], b"plan.json"].concat();
        let tensors = [&[9, 0, 0, 0, 0, 0, 0, 0], &b"{\"__metadata__\":{\"made_by\":\"fp8c\"}}"[..]].concat();
        let cases: [(&[u8], Option<Replaces>); 9] = [
            (b"", None),
            (&plan, Some(Replaces::Plan)),
            (&tensors, Some(Replaces::Tensors)),
            (b" {\n \"format\": \"fp8c-graph\"", Some(Replaces::Model)),
            (b"{\"step\":1,\"loss\":2.0}\n", Some(Replaces::Log)),
            (EXPORTED_ONNX, Some(Replaces::Onnx)),
            (EXPORTED_WEIGHTS, Some(Replaces::Onnx)),
            (b"\x08\x08\x12\x07pytorch", None),
            (b"PK\x03\x04 another archive", None),
        ];
        for (content, own) in cases {
            fs::write(&path, content).unwrap();
            for kind in [Replaces::Plan, Replaces::Tensors, Replaces::Model, Replaces::Log, Replaces::Onnx] {
                let may = kind.check(&path).is_ok();
                assert_eq!(may, content.is_empty() || own == Some(kind), "{kind:?} {:?}", String::from_utf8_lossy(content));
            }
        }
        Replaces::Log.check(&folder.path().join("absent")).unwrap();
    }

    #[test]
    fn one_file_is_known_by_all_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let [a, hard, soft, other] = ["a", "hard", "soft", "other"].map(|n| folder.path().join(n));
        fs::write(&a, b"x").unwrap();
        fs::write(&other, b"x").unwrap();
        fs::hard_link(&a, &hard).unwrap();
        symlink(&a, &soft).unwrap();
        assert!(is_same_file(&a, &hard) && is_same_file(&a, &soft) && is_same_file(&a, &a));
        assert!(!is_same_file(&a, &other) && !is_same_file(&a, &folder.path().join("absent")));
    }
}
