use crate::fixtures::*;
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::plan::Plan;
use fp8c_runtime::session::Batch;
use std::path::Path;

fn ints(batch: &Batch, input: usize) -> Vec<i64> {
    batch.input(input).chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

fn floats(batch: &Batch, input: usize) -> Vec<f32> {
    batch.input(input).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn filled(plan: &Plan, loader: &Loader, position: u64) -> Batch {
    let mut batch = Batch::new(plan);
    loader.fill(position, &mut batch).unwrap();
    batch
}

fn open(plan: &Plan, specs: &[String], order: Order) -> Result<Loader, String> {
    Loader::open(plan, specs, order).map_err(|e| e.to_string())
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> Vec<String> {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    vec![path.display().to_string()]
}

#[test]
fn unshuffled_text_gives_consecutive_windows_and_their_next_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let plan = language_model(2, 3, 256, &[]);
    let loader = open(&plan, &file(folder.path(), "a.txt", b"abcdefghijklm"), Order::Sequential).unwrap();
    let batch = filled(&plan, &loader, 0);
    assert_eq!(ints(&batch, 0), b"abcdef".map(i64::from));
    assert_eq!(ints(&batch, 1), b"bcdefg".map(i64::from));
    // Thirteen tokens hold four windows of three with a token to follow; then it wraps.
    let batch = filled(&plan, &loader, 4);
    assert_eq!(ints(&batch, 0), b"abcdef".map(i64::from));
    assert_eq!((loader.samples_per_step(), loader.tokens_per_step()), (2, 6));
}

#[test]
fn token_files_of_llm_c_are_read_in_both_widths_and_raw() {
    let folder = tempfile::tempdir().unwrap();
    let plan = language_model(1, 2, 200_000, &[]);
    let header = |magic: u32, version: u32, count: u32| {
        let mut h = vec![0u8; 1024];
        [magic, version, count].iter().enumerate().for_each(|(i, w)| h[4 * i..4 * i + 4].copy_from_slice(&w.to_le_bytes()));
        h
    };
    let mut narrow = header(20240520, 1, 3);
    narrow.extend([1u16, 50256, 3].iter().flat_map(|t| t.to_le_bytes()));
    let mut wide = header(20240801, 7, 3);
    wide.extend([1u32, 128_000, 3].iter().flat_map(|t| t.to_le_bytes()));
    let raw: Vec<u8> = [9u16, 8, 7].iter().flat_map(|t| t.to_le_bytes()).collect();
    for (name, bytes, first, labels) in [("n.bin", narrow.clone(), [1, 50256], [50256, 3]), ("w.bin", wide, [1, 128_000], [128_000, 3])] {
        let batch = filled(&plan, &open(&plan, &file(folder.path(), name, &bytes), Order::Sequential).unwrap(), 0);
        assert_eq!((ints(&batch, 0), ints(&batch, 1)), (first.to_vec(), labels.to_vec()));
    }
    let batch = filled(&plan, &open(&plan, &file(folder.path(), "r.bin", &raw), Order::Sequential).unwrap(), 0);
    assert_eq!(ints(&batch, 0), [9, 8]);
    let cut = open(&plan, &file(folder.path(), "c.bin", &narrow[..1026]), Order::Sequential).err().unwrap();
    assert!(cut.contains("counts 3 tokens"), "{cut}");
    let other = open(&plan, &file(folder.path(), "v.bin", &header(20240520, 2, 0)), Order::Sequential).err().unwrap();
    assert!(other.contains("version 2"), "{other}");
}

#[test]
fn shuffled_windows_depend_on_seed_and_position_alone() {
    let folder = tempfile::tempdir().unwrap();
    let plan = language_model(4, 5, 256, &[]);
    let text: Vec<u8> = (0..200).collect();
    let specs = file(folder.path(), "a.txt", &text);
    let loader = |seed| open(&plan, &specs, Order::Shuffled { seed }).unwrap();
    assert_eq!(filled(&plan, &loader(1), 40), filled(&plan, &loader(1), 40));
    assert_ne!(filled(&plan, &loader(1), 40), filled(&plan, &loader(2), 40));
    assert_ne!(filled(&plan, &loader(1), 40), filled(&plan, &loader(1), 44));
    let batch = filled(&plan, &loader(1), 0);
    let (ids, labels) = (ints(&batch, 0), ints(&batch, 1));
    assert!(ids.iter().zip(&labels).all(|(i, l)| l == &(i + 1)));
    let smallest = open(&plan, &file(folder.path(), "s.txt", &text[..6]), Order::Shuffled { seed: 0 }).unwrap();
    assert_eq!(ints(&filled(&plan, &smallest, 0), 0)[..5], [0, 1, 2, 3, 4]);
}

#[test]
fn inputs_that_follow_from_the_tokens_are_filled_and_noted() {
    let folder = tempfile::tempdir().unwrap();
    let plan = language_model(2, 3, 256, &["attention_mask", "position_ids"]);
    let loader = open(&plan, &file(folder.path(), "a.txt", b"abcdefgh"), Order::Sequential).unwrap();
    let batch = filled(&plan, &loader, 0);
    assert_eq!(ints(&batch, 2), [1; 6]);
    assert_eq!(ints(&batch, 3), [0, 1, 2, 0, 1, 2]);
    assert_eq!(loader.notes().len(), 2);
    let strange = language_model(2, 3, 256, &["images"]);
    let error = open(&strange, &file(folder.path(), "a.txt", b"abcdefgh"), Order::Sequential).err().unwrap();
    assert!(error.contains("images"), "{error}");
}

#[test]
fn tokens_outside_the_vocabulary_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let plan = language_model(2, 3, 100, &[]);
    let loader = open(&plan, &file(folder.path(), "a.txt", b"    ~      "), Order::Sequential).unwrap();
    let error = loader.fill(0, &mut Batch::new(&plan)).unwrap_err().to_string();
    assert_eq!(error, "input_ids: token 4 is 126, which is not in 0..100");
}

#[test]
fn too_few_tokens_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let plan = language_model(2, 3, 256, &[]);
    for text in [&b""[..], b"abc"] {
        let error = open(&plan, &file(folder.path(), "a.txt", text), Order::Sequential).err().unwrap();
        assert!(error.contains("needs 4"), "{error}");
    }
}

#[test]
fn arrays_are_taken_in_order_and_wrap_around() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    let specs = teacher(folder.path(), 5);
    let loader = open(&plan, &specs, Order::Sequential).unwrap();
    let rows = |position| floats(&filled(&plan, &loader, position), 0);
    let all = [rows(0), rows(2)].concat();
    assert_eq!(rows(4)[WIDTH as usize..], all[..WIDTH as usize], "sample 5 is sample 0 again");
    assert_eq!(rows(10), rows(0));
}

#[test]
fn accumulated_batches_take_the_rows_of_one_large_batch() {
    let folder = tempfile::tempdir().unwrap();
    let specs = teacher(folder.path(), 8);
    let (one, two) = (regression(1), regression(2));
    let (small, large) = (open(&one, &specs, Order::Sequential).unwrap(), open(&two, &specs, Order::Sequential).unwrap());
    assert_eq!((small.samples_per_step(), large.samples_per_step()), (2, 4));
    let large = filled(&two, &large, 4);
    assert_eq!(large.micro(0, 1), filled(&one, &small, 6).input(0));
}

#[test]
fn a_shuffled_epoch_visits_every_sample_once_and_pairs_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    let n = 6;
    npy(&folder.path().join("x.npy"), "<f4", &[n, WIDTH], &f32_bytes((0..n * WIDTH).map(|i| (i / WIDTH) as f32)));
    npy(&folder.path().join("t.npy"), "<f4", &[n, OUT], &f32_bytes((0..n * OUT).map(|i| (i / OUT) as f32)));
    let specs: Vec<String> = ["x", "t"].iter().map(|s| format!("{s}={}", folder.path().join(format!("{s}.npy")).display())).collect();
    let loader = open(&plan, &specs, Order::Shuffled { seed: 4 }).unwrap();
    let epoch = |first: u64| -> Vec<i64> {
        (0..3).flat_map(|i| floats(&filled(&plan, &loader, first + 2 * i), 0)).step_by(WIDTH as usize).map(|v| v as i64).collect()
    };
    let (first, second) = (epoch(0), epoch(6));
    let sorted = |mut v: Vec<i64>| {
        v.sort_unstable();
        v
    };
    assert_eq!(sorted(first.clone()), [0, 1, 2, 3, 4, 5]);
    assert_eq!(sorted(second.clone()), [0, 1, 2, 3, 4, 5]);
    assert_ne!(first, second);
    let batch = filled(&plan, &loader, 2);
    assert_eq!(floats(&batch, 0)[0], floats(&batch, 1)[0]);
}

#[test]
fn elements_of_other_types_are_converted_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    let spec = |name: &str, file: &str| format!("{name}={}", folder.path().join(file).display());
    npy(&folder.path().join("x.npy"), "|u1", &[2, WIDTH], &[0, 1, 2, 3, 4, 5, 6, 255]);
    npy(&folder.path().join("t.npy"), "<f8", &[2, OUT], &[0.5f64; 6].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
    let specs = [spec("x", "x.npy"), spec("t", "t.npy")];
    let batch = filled(&plan, &open(&plan, &specs, Order::Sequential).unwrap(), 0);
    assert_eq!(floats(&batch, 0)[7], 255.0);
    assert_eq!(floats(&batch, 1), [0.5; 6]);
    let ids = language_model(1, 4, 10, &[]);
    npy(&folder.path().join("f.npy"), "<f4", &[2, 4], &f32_bytes([0.0; 8]));
    let error = open(&ids, &[spec("input_ids", "f.npy"), spec("labels", "f.npy")], Order::Sequential).err().unwrap();
    assert!(error.contains("F32") && error.contains("i64"), "{error}");
}

#[test]
fn labels_outside_their_range_name_the_sample() {
    let folder = tempfile::tempdir().unwrap();
    let plan = language_model(1, 2, 10, &[]);
    let ints = |v: &[i64]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    npy(&folder.path().join("i.npy"), "<i8", &[3, 2], &ints(&[0; 6]));
    npy(&folder.path().join("l.npy"), "<i8", &[3, 2], &ints(&[0, -100, 9, 0, 0, 10]));
    let spec = |name: &str, file: &str| format!("{name}={}", folder.path().join(file).display());
    let loader = open(&plan, &[spec("input_ids", "i.npy"), spec("labels", "l.npy")], Order::Sequential).unwrap();
    let mut batch = Batch::new(&plan);
    loader.fill(0, &mut batch).unwrap();
    loader.fill(1, &mut batch).unwrap();
    let error = loader.fill(2, &mut batch).unwrap_err().to_string();
    assert_eq!(error, "labels: sample 2, element 1 is 10, which is not in 0..10");
}

#[test]
fn specifications_that_do_not_fit_the_plan_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    let specs = teacher(folder.path(), 4);
    let fails = |specs: &[String]| open(&plan, specs, Order::Sequential).err().unwrap();
    assert!(fails(&[]).contains("x, t"));
    assert!(fails(&specs[..1]).contains("no data for input t"));
    assert!(fails(&[specs[0].clone(), specs[0].clone()]).contains("twice"));
    assert!(fails(&["y=whatever.npy".to_string()]).contains("no input y"));
    assert!(fails(&file(folder.path(), "a.txt", b"abc")).contains("input_ids"));
    npy(&folder.path().join("x.npy"), "<f4", &[4, 5], &f32_bytes([0.0; 20]));
    assert!(fails(&specs).contains("[5]"));
    npy(&folder.path().join("x.npy"), "<f4", &[3, WIDTH], &f32_bytes([0.0; 12]));
    assert!(fails(&specs).contains("4 samples"));
}

#[test]
fn damaged_arrays_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let plan = regression(1);
    let specs = teacher(folder.path(), 4);
    let path = folder.path().join("x.npy");
    let whole = std::fs::read(&path).unwrap();
    let fails = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        open(&plan, &specs, Order::Sequential).err().expect("refused")
    };
    assert!(fails(&whole[..whole.len() - 1]).contains("shorter"));
    assert!(fails(&whole[..20]).contains("cut off"));
    assert!(fails(b"no numpy at all, this").contains("magic"));
    let nested = [b"\x93NUMPY\x01\x00\x00\x20".as_slice(), &[b'('; 8192]].concat();
    assert!(fails(&nested).contains("too deep"));
    npy(&path, "<f4", &[1 << 40, 1 << 40], &[]);
    assert!(open(&plan, &specs, Order::Sequential).is_err());
    npy(&path, ">f4", &[4, WIDTH], &f32_bytes([0.0; 16]));
    assert!(open(&plan, &specs, Order::Sequential).err().unwrap().contains("big-endian"));
    npy(&path, "<c8", &[4, WIDTH], &[0; 128]);
    assert!(open(&plan, &specs, Order::Sequential).is_err());
}
