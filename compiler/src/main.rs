fn main() -> std::process::ExitCode {
    fp8c::cli::main()
}
