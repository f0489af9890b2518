//! The `pushline` binary: the allocator, and the way from the command line to the node.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pushline::edge::cli::main()
}
