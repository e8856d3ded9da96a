//! The Container Runtime Interface, version 1, as containerd, CRI-O and cri-dockerd serve it on a Unix socket.
//!
//! `proto/api.proto` is `pkg/apis/runtime/v1/api.proto` of <https://github.com/kubernetes/cri-api>, unchanged; what each
//! message and field means is said there. To take over a newer one, replace the file.

/// Messages and clients of `runtime.v1`.
#[allow(missing_docs, clippy::all, unused_qualifications, reason = "generated; the definition has the comments")]
#[allow(
    clippy::cast_lossless,
    clippy::needless_pass_by_value,
    clippy::semicolon_if_nothing_returned,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

pub use tonic;
