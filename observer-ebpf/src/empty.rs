//! Programs that do nothing, for the benchmark: the floor that the real pair is compared with.

use aya_ebpf::{macros::cgroup_skb, programs::SkBuffContext};

/// Lets every packet pass.
#[cgroup_skb(ingress)]
pub fn empty_ingress(_ctx: SkBuffContext) -> i32 {
    1
}

/// Lets every packet pass.
#[cgroup_skb(egress)]
pub fn empty_egress(_ctx: SkBuffContext) -> i32 {
    1
}
