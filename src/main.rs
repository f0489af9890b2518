//! The `pushline` binary: the allocator, and the way from the command line to the node.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before anything grows. Refused (old kernels), memory is only less tight.
    let _ = pushline::runtime::host::disable_huge_pages();
    pushline::edge::cli::main()
}
