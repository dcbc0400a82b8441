//! What the stand-in objects to, each beside the same calls put right.

use fp8c_driver_standin::{Code, Config, Driver, Work};

/// Adds 1 to each of 32 words.
const PTX: &str = ".version 8.4\n.target sm_89\n.address_size 64\n.visible .entry k(\n\t.param .u64 .ptr .global .align 16 k_param_0\n)\n{\n\
    mov.u32 %r1, %tid.x;\nld.param.b64 %rd1, [k_param_0];\nmul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd3, %rd1, %rd2;\n\
    ld.global.b32 %r2, [%rd3];\nadd.s32 %r3, %r2, 1;\nst.global.b32 [%rd3], %r3;\nret;\n}\n";
const BYTES: u64 = 128;

/// A driver with two streams, an event, device and pinned memory of [`BYTES`] bytes, and the kernel.
struct Set {
    d: Driver,
    copies: u64,
    kernels: u64,
    event: u64,
    memory: u64,
    host: u64,
    module: u64,
    function: u64,
}

impl Set {
    fn new(seed: u64) -> Set {
        let mut d = Driver::new(Config { chip: (8, 9), memory: 1 << 20, seed, ..Config::default() });
        d.retain();
        let (memory, host) = (d.allocate(BYTES).unwrap(), d.allocate_host(BYTES).unwrap());
        let module = d.load(PTX).unwrap();
        let function = d.function(module, "k").unwrap();
        let mut set = Set {
            copies: d.create_stream(false),
            kernels: d.create_stream(false),
            event: d.create_event(),
            d,
            memory,
            host,
            module,
            function,
        };
        set.host_words().fill(7);
        set
    }

    fn host_words(&mut self) -> &mut [u32] {
        // SAFETY: the pinned memory has as many bytes, and tests of one thread run nothing else on it.
        unsafe { std::slice::from_raw_parts_mut(self.host as *mut u32, BYTES as usize / 4) }
    }

    fn copy_in(&mut self) {
        let work = Work::ToDevice { to: self.memory, from: self.host, bytes: BYTES };
        self.d.enqueue(self.copies, work).unwrap();
    }

    fn copy_out(&mut self) {
        let work = Work::ToHost { to: self.host, from: self.memory, bytes: BYTES };
        self.d.enqueue(self.copies, work).unwrap();
    }

    fn launch(&mut self) {
        self.d.launch(self.kernels, self.function, [1, 1, 1], [32, 1, 1], 0, vec![self.memory]).unwrap();
    }

    fn kernels_after_copies(&mut self) {
        self.d.record(self.event, self.copies).unwrap();
        self.d.wait_event(self.kernels, self.event).unwrap();
    }

    fn copies_after_kernels(&mut self) {
        self.d.record(self.event, self.kernels).unwrap();
        self.d.wait_event(self.copies, self.event).unwrap();
    }

    /// Frees everything.
    fn end(mut self) -> Driver {
        self.d.destroy_stream(self.copies).unwrap();
        self.d.destroy_stream(self.kernels).unwrap();
        self.d.destroy_event(self.event).unwrap();
        self.d.unload(self.module).unwrap();
        self.d.free(self.memory).unwrap();
        self.d.free_host(self.host).unwrap();
        self.d.release().unwrap();
        self.d
    }
}

#[test]
fn work_that_is_ordered_and_waited_for_runs_and_leaves_nothing() {
    let mut s = Set::new(1);
    s.copy_in();
    s.kernels_after_copies();
    s.launch();
    s.copies_after_kernels();
    // The copy out is to the memory that was copied in, and poisons it: the copy in has to be over.
    s.d.synchronize_stream(s.kernels).unwrap();
    s.copy_out();
    s.d.synchronize_stream(s.copies).unwrap();
    assert_eq!(s.host_words(), [8; 32]);
    let d = s.end();
    assert_eq!((d.report.faults, d.report.leaks), (vec![], vec![]));
}

#[test]
fn a_kernel_that_does_not_wait_for_its_copy_reads_what_nobody_wrote() {
    let mut s = Set::new(1);
    s.copy_in();
    s.launch();
    assert!(s.d.synchronize_stream(s.kernels).is_err());
    assert!(s.d.report.faults[0].contains("undefined"), "{:?}", s.d.report.faults);
}

#[test]
fn a_copy_that_does_not_wait_for_a_kernel_is_a_race_whatever_the_order() {
    for seed in 0..8 {
        let mut s = Set::new(seed);
        s.copy_in();
        s.kernels_after_copies();
        s.launch();
        s.copy_out();
        let both = [s.d.synchronize_stream(s.copies), s.d.synchronize_stream(s.kernels)];
        assert!(both.iter().any(Result::is_err), "seed {seed}");
        assert!(s.d.report.faults[0].contains("a race between streams"), "{:?}", s.d.report.faults);
    }
}

#[test]
fn a_result_that_is_read_before_its_wait_is_poison() {
    let mut s = Set::new(1);
    s.copy_in();
    s.d.synchronize_stream(s.copies).unwrap();
    s.copy_out();
    assert_eq!(s.host_words()[0], u32::MAX);
    s.d.synchronize_stream(s.copies).unwrap();
    assert_eq!(s.host_words()[0], 7);
}

#[test]
fn host_memory_is_read_when_its_copy_runs() {
    let mut s = Set::new(1);
    s.copy_in();
    s.host_words().fill(9);
    s.copy_out();
    s.d.synchronize_stream(s.copies).unwrap();
    assert_eq!(s.host_words()[0], u32::MAX, "the source was overwritten by the poison of the copy back");
}

#[test]
fn a_graph_runs_each_time_with_the_parameters_of_its_capture() {
    let mut s = Set::new(1);
    s.d.begin_capture(s.kernels).unwrap();
    s.launch();
    s.launch();
    let graph = s.d.end_capture(s.kernels).unwrap();
    let executable = s.d.instantiate(graph).unwrap();
    s.d.destroy_graph(graph).unwrap();
    s.copy_in();
    s.kernels_after_copies();
    (0..3).for_each(|_| s.d.launch_graph(executable, s.kernels).unwrap());
    s.copies_after_kernels();
    s.d.synchronize_stream(s.kernels).unwrap();
    s.copy_out();
    s.d.synchronize_stream(s.copies).unwrap();
    assert_eq!(s.host_words()[31], 7 + 6);
    s.d.destroy_executable(executable).unwrap();
    assert!(s.end().report.leaks.is_empty());
}

#[test]
fn a_capture_that_another_stream_has_joined_wants_it_back() {
    let mut s = Set::new(1);
    s.d.begin_capture(s.kernels).unwrap();
    s.launch();
    s.copies_after_kernels();
    s.copy_out();
    assert_eq!(s.d.synchronize_stream(s.kernels), Err(Code::CAPTURE_UNSUPPORTED));
    assert_eq!(s.d.allocate(64), Err(Code::CAPTURE_UNSUPPORTED));
    assert_eq!(s.d.end_capture(s.kernels), Err(Code::CAPTURE_UNJOINED));
}

#[test]
fn memory_is_freed_once_and_not_while_it_is_used() {
    let mut s = Set::new(1);
    s.copy_in();
    s.d.free(s.memory).unwrap();
    assert!(s.d.report.faults[0].contains("operations are queued"));
    assert_eq!(s.d.free(s.memory), Err(Code::INVALID_VALUE));
    assert_eq!(s.d.synchronize_stream(s.copies), Err(Code::ILLEGAL_ADDRESS));
    assert_eq!(s.d.broken(), Some(Code::ILLEGAL_ADDRESS));
}

#[test]
fn allocations_end_where_the_memory_does() {
    let mut s = Set::new(1);
    assert_eq!(s.d.allocate(1 << 20), Err(Code::OUT_OF_MEMORY));
    let rest = s.d.allocate((1 << 20) - BYTES).unwrap();
    assert_eq!(s.d.memory_info().0, 0);
    s.d.free(rest).unwrap();
    assert_eq!(s.d.memory_info().0, (1 << 20) - BYTES);
}

#[test]
fn an_access_beyond_an_allocation_is_a_fault() {
    let mut s = Set::new(1);
    s.copy_in();
    s.kernels_after_copies();
    s.d.launch(s.kernels, s.function, [1, 1, 1], [32, 1, 1], 0, vec![s.memory + 4]).unwrap();
    assert!(s.d.synchronize_stream(s.kernels).is_err());
    assert!(s.d.report.faults[0].contains("access of 4 bytes at offset 128 of 128"), "{:?}", s.d.report.faults);
}

#[test]
fn calls_that_a_gpu_might_let_pass_are_reported() {
    let mut s = Set::new(1);
    s.d.wait_event(s.kernels, s.event).unwrap();
    assert!(s.d.report.faults[0].contains("never recorded"));
    let local = [0u8; 8];
    let work = Work::ToDevice { to: s.memory, from: local.as_ptr() as u64, bytes: 8 };
    assert_eq!(s.d.enqueue(s.copies, work), Err(Code::INVALID_VALUE));
    assert!(s.d.report.faults[1].contains("not pinned"));
    assert_eq!(s.d.launch(s.kernels, s.function, [1, 1, 1], [2048, 1, 1], 0, vec![s.memory]), Err(Code::INVALID_VALUE));
    assert_eq!(s.d.launch(s.kernels, s.function, [1, 1, 1], [32, 1, 1], 100 << 10, vec![s.memory]), Err(Code::INVALID_VALUE));
    assert_eq!(s.d.launch(s.kernels, s.function, [1, 2, 1], [32, 1, 1], 0, vec![s.memory]), Err(Code::NOT_SUPPORTED));
}

#[test]
fn ptx_runs_on_its_chip_and_later_ones() {
    let on = |chip: (i32, i32), target: &str| {
        let mut d = Driver::new(Config { chip, ..Config::default() });
        d.load(&PTX.replace("sm_89", target)).err()
    };
    assert_eq!((on((8, 9), "sm_89"), on((9, 0), "sm_89"), on((9, 0), "sm_90a")), (None, None, None));
    assert_eq!(on((8, 0), "sm_89"), Some(Code::NO_BINARY_FOR_GPU));
    assert_eq!(on((12, 0), "sm_90a"), Some(Code::NO_BINARY_FOR_GPU));
    let mut d = Driver::new(Config { chip: (8, 9), ..Config::default() });
    assert_eq!(d.load(&PTX.replace("add.s32", "frobnicate.s32")), Err(Code::INVALID_PTX));
}

#[test]
fn what_is_left_at_the_end_is_listed() {
    let mut s = Set::new(1);
    s.copy_in();
    s.d.release().unwrap();
    let leaks = s.d.report.leaks.join("; ");
    for what in ["128 bytes of device memory", "pinned", "2 streams", "1 events", "1 modules", "1 operations"] {
        assert!(leaks.contains(what), "{leaks}");
    }
}
