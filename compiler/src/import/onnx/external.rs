//! Tensors stored in files beside the model.

use fp8c_runtime::files::Input;
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

/// The files that a model's tensors lie in, each checked once.
pub struct ExternalFiles {
    /// None: the model has no place on disk.
    folder: Option<PathBuf>,
    checked: HashMap<String, (PathBuf, u64)>,
}

/// A checked range of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Range {
    pub path: PathBuf,
    pub offset: u64,
    pub bytes: u64,
}

impl ExternalFiles {
    /// Files relative to `folder`, the model's own.
    pub fn new(folder: &Path) -> Self {
        let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_path_buf() };
        ExternalFiles { folder: Some(folder), checked: HashMap::new() }
    }

    /// Refuses every file.
    pub fn none() -> Self {
        ExternalFiles { folder: None, checked: HashMap::new() }
    }

    /// Resolves an ONNX `external_data` record to a range of exactly `need` bytes.
    ///
    /// # Errors
    /// A sentence without a subject: the location is absolute, contains `..` or leads out of the folder through a link, the file is
    /// missing, the range lies outside it or has another length.
    pub fn range<'a>(&mut self, record: impl Iterator<Item = (&'a str, &'a str)>, need: u64) -> Result<Range, String> {
        let (mut location, mut offset, mut length) = (None, 0u64, None);
        let number = |key: &str, v: &str| v.parse::<u64>().map_err(|_| format!("has the external {key} {v:?}, which is no byte count"));
        for (key, value) in record {
            match key {
                "location" => location = Some(value),
                "offset" => offset = number(key, value)?,
                "length" => length = Some(number(key, value)?),
                _ => {}
            }
        }
        let location = location.ok_or("is external but names no file")?;
        let (path, size) = self.whole(location)?;
        let bytes = length.unwrap_or_else(|| size.saturating_sub(offset).min(need));
        if bytes != need {
            return Err(format!("needs {need} bytes but has {bytes} in {location}"));
        }
        if offset.checked_add(bytes).is_none_or(|end| end > size) {
            return Err(format!("lies at bytes {offset}..+{bytes} of {location}, which has only {size}"));
        }
        Ok(Range { path, offset, bytes })
    }

    /// A file inside the folder, and its length.
    ///
    /// # Errors
    /// As [`ExternalFiles::range`].
    pub fn whole(&mut self, location: &str) -> Result<(PathBuf, u64), String> {
        if let Some(known) = self.checked.get(location) {
            return Ok(known.clone());
        }
        let relative = Path::new(location);
        let plain = relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || location.contains('\0') || !plain {
            return Err(format!("lies in {location:?}, but external data must be inside the model's folder"));
        }
        let folder = self.folder.as_ref().ok_or("lies in another file, but the model has no folder")?;
        let path = folder.join(relative);
        let missing = |e: std::io::Error| format!("lies in {}, which cannot be read: {e}", path.display());
        let folder = folder.canonicalize().map_err(missing)?;
        let real = path.canonicalize().map_err(missing)?;
        if !real.starts_with(&folder) {
            return Err(format!("lies in {location:?}, a link that leaves the model's folder"));
        }
        let about = real.metadata().map_err(missing)?;
        if !about.is_file() {
            return Err(format!("lies in {location:?}, which is not a file"));
        }
        let known = (path, about.len());
        self.checked.insert(location.to_string(), known.clone());
        Ok(known)
    }
}

/// Reads a range into memory.
///
/// # Errors
/// That the file cannot be opened or ends before the range does.
pub fn read(path: &Path, offset: u64, bytes: u64) -> Result<Vec<u8>, fp8c_runtime::Error> {
    let input = Input::open(path)?;
    input.read(offset..offset.saturating_add(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(folder: &Path, location: &str, offset: &str, length: &str, need: u64) -> Result<Range, String> {
        let record = [("location", location), ("offset", offset), ("length", length)];
        ExternalFiles::new(folder).range(record.into_iter(), need)
    }

    #[test]
    fn only_ranges_inside_files_inside_the_folder_are_accepted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("model")).unwrap();
        let model = dir.path().join("model");
        std::fs::write(dir.path().join("outside"), [0; 64]).unwrap();
        std::fs::write(model.join("weights"), [7; 64]).unwrap();
        let ok = range(&model, "./weights", "32", "32", 32).unwrap();
        assert_eq!((ok.offset, ok.bytes), (32, 32));
        assert_eq!(read(&ok.path, 32, 32).unwrap(), vec![7; 32]);
        for (location, offset, length, need) in [
            ("../outside", "0", "32", 32),
            ("/etc/passwd", "0", "32", 32),
            ("", "0", "32", 32),
            ("missing", "0", "32", 32),
            ("weights", "33", "32", 32),
            ("weights", "18446744073709551615", "32", 32),
            ("weights", "0", "16", 32),
            ("weights", "-1", "32", 32),
        ] {
            assert!(range(&model, location, offset, length, need).is_err(), "{location} {offset} {length}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_that_leave_the_folder_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        std::fs::create_dir(&model).unwrap();
        std::fs::write(dir.path().join("outside"), [0; 64]).unwrap();
        std::os::unix::fs::symlink("../outside", model.join("link")).unwrap();
        assert!(range(&model, "link", "0", "64", 64).unwrap_err().contains("leaves the model's folder"));
    }
}
