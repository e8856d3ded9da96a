//! The `observer` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match observer::cli::main(&std::env::args_os().collect::<Vec<_>>()) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("observer: {error:#}");
            ExitCode::FAILURE
        }
    }
}
