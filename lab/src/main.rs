//! stub

use std::process::ExitCode;

fn main() -> ExitCode {
    observer_lab::vm_init::entry().unwrap_or(ExitCode::SUCCESS)
}
