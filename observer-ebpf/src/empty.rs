//! Programs that do nothing, for the benchmark: the floor that the real pair is compared with.

use aya_ebpf::{
    macros::{cgroup_skb, classifier},
    programs::{SkBuffContext, TcContext},
};

/// `TCX_NEXT` and `TC_ACT_UNSPEC` (include/uapi/linux/bpf.h, pkt_cls.h): the next program decides.
const NEXT: i32 = -1;

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

/// Leaves every packet to the next program.
#[classifier]
pub fn empty_interface(_ctx: TcContext) -> i32 {
    NEXT
}
