use crate::fixtures::*;
use fp8c_runtime::data::{DataOptions, Loader, Order, TokenWidth};
use fp8c_runtime::plan::{Labels, Plan};
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

fn open(plan: &Plan, specs: &[String], options: impl Into<DataOptions>) -> Result<Loader, String> {
    Loader::open(plan, specs, options).map_err(|e| e.to_string())
}

fn refusal(plan: &Plan, specs: &[String], options: impl Into<DataOptions>) -> String {
    open(plan, specs, options).expect_err("refused")
}

fn words<const N: usize>(values: &[[u8; N]]) -> Vec<u8> {
    values.concat()
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
    assert_eq!(loader.notes().len(), 3, "{:?}", loader.notes());
    let strange = language_model(2, 3, 256, &["images"]);
    let error = open(&strange, &file(folder.path(), "a.txt", b"abcdefgh"), Order::Sequential).err().unwrap();
    assert!(error.contains("images"), "{error}");
}

#[test]
fn tokens_outside_the_vocabulary_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let plan = language_model(2, 3, 100, &[]);
    let specs = file(folder.path(), "a.bin", &words(&[32u16, 32, 32, 32, 126, 32, 32, 32, 32, 32, 32].map(u16::to_le_bytes)));
    let narrow = DataOptions { width: Some(TokenWidth::Narrow), ..Order::Sequential.into() };
    assert_eq!(refusal(&plan, &specs, narrow), format!("{}: token 4 (byte 8) is 126, but input_ids takes 0 to 99, or -100", specs[0]));
    let guessed = refusal(&plan, &specs, Order::Sequential);
    assert!(guessed.ends_with("a.bin: read as 16-bit tokens, token 4 (byte 8) is 126, and the vocabulary has 100"), "{guessed}");
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
    let specs = [spec("input_ids", "i.npy"), spec("labels", "l.npy")];
    let error = refusal(&plan, &specs, Order::Sequential);
    assert!(error.ends_with("l.npy: sample 2, element 1 (byte 168) is 10, but labels takes 0 to 9, or -100"), "{error}");
    for odd in [-1, 1_000_000_000, 1 << 62, i64::MIN] {
        npy(&folder.path().join("l.npy"), "<i8", &[3, 2], &ints(&[0, -100, 9, 0, odd, 0]));
        let error = refusal(&plan, &specs, Order::Shuffled { seed: 1 });
        assert!(error.contains(&format!("sample 2, element 0 (byte 160) is {odd}, but labels takes 0 to 9, or -100")), "{error}");
    }
    let wide = [10u32; 6].map(u32::to_le_bytes);
    npy(&folder.path().join("l.npy"), "<u4", &[3, 2], &words(&wide));
    assert!(refusal(&plan, &specs, Order::Sequential).contains("sample 0, element 0 (byte 128) is 10"));
}

#[test]
fn a_value_that_turns_bad_while_a_training_runs_is_found_in_its_batch() {
    let folder = tempfile::tempdir().unwrap();
    let plan = language_model(1, 2, 10, &[]);
    let ints = |v: [i64; 6]| words(&v.map(i64::to_le_bytes));
    npy(&folder.path().join("i.npy"), "<i8", &[3, 2], &ints([0; 6]));
    npy(&folder.path().join("l.npy"), "<i8", &[3, 2], &ints([1; 6]));
    let spec = |name: &str, file: &str| format!("{name}={}", folder.path().join(file).display());
    let loader = open(&plan, &[spec("input_ids", "i.npy"), spec("labels", "l.npy")], Order::Sequential).unwrap();
    let mut batch = Batch::new(&plan);
    loader.fill(1, &mut batch).unwrap();
    use std::os::unix::fs::FileExt;
    let opened = std::fs::OpenOptions::new().write(true).open(folder.path().join("l.npy")).unwrap();
    opened.write_all_at(&(-1i64).to_le_bytes(), 128 + 24).unwrap();
    let error = loader.fill(1, &mut batch).unwrap_err();
    assert!(matches!(error, fp8c_runtime::Error::Data { fault: fp8c_runtime::DataFault::Range, .. }));
    assert!(error.to_string().ends_with("l.npy: sample 1, element 1 (byte 152) is -1, but labels takes 0 to 9, or -100"), "{error}");
}

#[test]
fn bytes_are_tokens_only_where_the_vocabulary_is_that_of_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let specs = file(folder.path(), "a.txt", b"abcdefgh");
    assert!(open(&language_model(1, 2, 256, &[]), &specs, Order::Sequential).is_ok());
    for (vocabulary, says) in [(50_257, "has 50257 tokens"), (100, "has 100 tokens")] {
        let error = refusal(&language_model(1, 2, vocabulary, &[]), &specs, Order::Sequential);
        assert!(error.contains("bytes are tokens only for a vocabulary of 256") && error.contains(says), "{error}");
    }
    let mut unknown = language_model(1, 2, 256, &[]);
    unknown.inputs[0].bound = None;
    assert!(refusal(&unknown, &specs, Order::Sequential).contains("is not known"));
}

#[test]
fn the_width_of_tokens_without_a_header_is_told_or_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let plan = language_model(1, 2, 1000, &[]);
    let at = |name: &str, bytes: &[u8]| file(folder.path(), name, bytes);
    let wide = at("w.bin", &words(&[7u32, 8, 9, 10].map(u32::to_le_bytes)));
    let narrow = at("n.bin", &words(&[7u16, 8, 9, 10, 11, 12].map(u16::to_le_bytes)));
    let first = |specs: &[String], width| {
        let loader = open(&plan, specs, DataOptions { width, ..Order::Sequential.into() })?;
        Ok::<_, String>(ints(&filled(&plan, &loader, 0), 0))
    };
    assert_eq!(first(&narrow, None), Ok(vec![7, 8]), "as 32 bits its first token would be 524295");
    assert_eq!(first(&narrow, Some(TokenWidth::Narrow)), Ok(vec![7, 8]));
    assert!(first(&narrow, Some(TokenWidth::Wide)).unwrap_err().contains("token 0 (byte 0) is 524295"));
    assert!(first(&wide, None).unwrap_err().contains("may be of 32 bits"), "as 16 bits every second token would be 0");
    assert_eq!(first(&wide, Some(TokenWidth::Wide)), Ok(vec![7, 8]));
    assert_eq!(first(&wide, Some(TokenWidth::Narrow)), Ok(vec![7, 0]));
    let odd = at("o.bin", &[1, 0, 2, 0, 3]);
    assert!(first(&odd, None).unwrap_err().contains("5 bytes are no whole number of tokens"));
    assert!(first(&odd, Some(TokenWidth::Wide)).unwrap_err().contains("5 bytes are no whole number of 32-bit tokens"));
}

#[test]
fn labels_are_the_next_tokens_or_the_same_as_the_plan_or_the_user_says() {
    let folder = tempfile::tempdir().unwrap();
    let specs = file(folder.path(), "a.txt", b"abcdefgh");
    let mut plan = language_model(1, 3, 256, &[]);
    let labels = |plan: &Plan, asked| {
        let loader = open(plan, &specs, DataOptions { labels: asked, ..Order::Sequential.into() })?;
        Ok::<_, String>((ints(&filled(plan, &loader, 0), 1), loader.notes().join("; ")))
    };
    let (next, same) = (b"bcd".map(i64::from).to_vec(), b"abc".map(i64::from).to_vec());
    assert_eq!(labels(&plan, None), Ok((next.clone(), "labels are the next tokens".into())));
    plan.inputs[1].labels = Some(Labels::Same);
    let (found, note) = labels(&plan, None).unwrap();
    assert!(found == same && note.contains("the tokens themselves"), "{note}");
    let (found, note) = labels(&plan, Some(Labels::Next)).unwrap();
    assert!(found == next && note.contains("the model's own loss wants the other"), "{note}");
    plan.inputs[1].labels = None;
    assert!(labels(&plan, None).unwrap_err().contains("does not say whether its labels are the next tokens"));
    assert_eq!(labels(&plan, Some(Labels::Same)).unwrap().0, same);
}

#[test]
fn positions_beyond_what_the_model_has_are_refused_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = language_model(2, 3, 256, &["position_ids"]);
    plan.inputs[2].bound = Some(2);
    let error = refusal(&plan, &file(folder.path(), "a.txt", b"abcdefgh"), Order::Sequential);
    assert!(error.contains("position_ids would be filled with 2, but position_ids takes 0 to 1"), "{error}");
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
        open(&plan, &specs, Order::Sequential).expect_err("refused")
    };
    assert!(fails(&whole[..whole.len() - 1]).contains("shorter"));
    assert!(fails(&whole[..20]).contains("cut off"));
    assert!(fails(b"no numpy at all, this").contains("magic"));
    let nested = [b"\x93NUMPY\x01\x00\x00\x20".as_slice(), &[b'('; 8192]].concat();
    assert!(fails(&nested).contains("too deep"));
    // Fourteen levels took the parser a minute.
    let braces = [b"\x93NUMPY\x01\x00\x0e\x00".as_slice(), &[b'{'; 14]].concat();
    assert!(fails(&braces).contains("too deep"));
    npy(&path, "<f4", &[1 << 40, 1 << 40], &[]);
    assert!(open(&plan, &specs, Order::Sequential).is_err());
    npy(&path, ">f4", &[4, WIDTH], &f32_bytes([0.0; 16]));
    assert!(open(&plan, &specs, Order::Sequential).err().unwrap().contains("big-endian"));
    npy(&path, "<c8", &[4, WIDTH], &[0; 128]);
    assert!(open(&plan, &specs, Order::Sequential).is_err());
}
