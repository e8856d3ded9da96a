//! stub

pub mod cases;
pub mod vm_init;
