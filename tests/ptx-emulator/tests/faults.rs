//! What the emulator objects to, each beside the same program put right.

use fp8c_ptx_emulator::{Buffer, Contents, Fault, Launch, Program, run};

/// An entry `k` with one parameter and 1024 bytes of shared memory; `%rd1` holds the parameter, `%r1` the thread.
fn program(body: &str) -> String {
    format!(
        ".visible .entry k(\n\t.param .u64 .ptr .global .align 16 k_param_0\n)\n{{\n\
         .shared .align 128 .b8 k_shared[1024];\nmov.u32 %r1, %tid.x;\nld.param.b64 %rd1, [k_param_0];\n{body}\nret;\n}}\n"
    )
}

/// Runs 64 threads on a buffer of 256 bytes, each byte its position.
fn outcome(body: &str, contents: Contents) -> Result<Vec<u8>, Fault> {
    let program = Program::parse(&program(body))?;
    let mut buffers = [Buffer { bytes: (0..=255).collect(), contents }];
    let launch = Launch { entry: "k", blocks: 1, threads: 64, shared_bytes: 0 };
    run(&program, &launch, &mut buffers)?;
    let [buffer] = buffers;
    Ok(buffer.bytes)
}

fn reason(body: &str, contents: Contents) -> String {
    outcome(body, contents).map(|_| String::new()).unwrap_or_else(|fault| fault.reason)
}

/// Each thread writes its word of shared memory and, after `between`, copies its mirror image's word to the buffer.
fn mirror(between: &str) -> String {
    format!(
        "mul.wide.u32 %rd2, %r1, 4;\nmov.b64 %rd3, k_shared;\nadd.s64 %rd4, %rd3, %rd2;\nst.shared.b32 [%rd4], %r1;\n{between}\n\
         sub.s64 %rd5, %rd3, %rd2;\nld.shared.b32 %r2, [%rd5+252];\nadd.s64 %rd6, %rd1, %rd2;\nst.global.b32 [%rd6], %r2;"
    )
}

#[test]
fn words_cross_between_threads_at_a_barrier_and_not_without() {
    let bytes = outcome(&mirror("bar.sync 0;"), Contents::Undefined).unwrap();
    assert_eq!((bytes[0], bytes[4 * 63]), (63, 0));
    let without = reason(&mirror(""), Contents::Undefined);
    assert!(without.contains("undefined") || without.contains("races"), "{without}");
}

#[test]
fn a_barrier_in_divergent_code_is_a_fault() {
    let body = "setp.lt.s32 %p1, %r1, 7;\n@%p1 bra $L_end;\nbar.sync 0;\n$L_end:";
    assert!(reason(body, Contents::Initialised).contains("reach"));
}

/// Each thread copies 16 bytes from the buffer's first 256 to shared memory and adds the first word to its own.
fn asynchronous(wait: &str) -> String {
    format!(
        "and.b32 %r3, %r1, 15;\nmul.wide.u32 %rd2, %r3, 16;\nmul.wide.u32 %rd7, %r1, 16;\nmov.b64 %rd3, k_shared;\n\
         add.s64 %rd4, %rd3, %rd7;\nadd.s64 %rd5, %rd1, %rd2;\ncp.async.cg.shared.global [%rd4], [%rd5], 16;\n\
         cp.async.commit_group;\n{wait}\nld.shared.b32 %r2, [%rd4];"
    )
}

#[test]
fn an_asynchronous_copy_is_there_after_its_wait_and_not_before() {
    assert_eq!(reason(&asynchronous("cp.async.wait_group 0;"), Contents::ReadOnly), "");
    assert!(reason(&asynchronous(""), Contents::ReadOnly).contains("undefined"));
    assert!(reason(&asynchronous("cp.async.wait_group 1;"), Contents::ReadOnly).contains("undefined"));
}

#[test]
fn bounds_alignment_and_modes_are_held() {
    let store = |offset: &str| format!("setp.eq.b32 %p1, %r1, 0;\n@%p1 st.global.b32 [%rd1+{offset}], 1;");
    assert_eq!(reason(&store("252"), Contents::Undefined), "");
    assert!(reason(&store("256"), Contents::Undefined).contains("256"));
    assert!(reason(&store("2"), Contents::Undefined).contains("multiple"));
    assert!(reason(&store("0"), Contents::ReadOnly).contains("only read"));
    assert!(reason("ld.global.b32 %r2, [%rd1];", Contents::Undefined).contains("undefined"));
}

#[test]
fn two_threads_that_write_one_place_are_a_fault() {
    assert!(reason("st.global.b32 [%rd1], %r1;", Contents::Undefined).contains("races"));
}

#[test]
fn what_is_not_emulated_is_named() {
    assert_eq!(reason("frobnicate.b32 %r2, %r1;", Contents::Initialised), "frobnicate.b32 is not emulated");
}
