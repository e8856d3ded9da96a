//! The kernel programs that count traffic. One file for each hook family; every map stands in `maps.rs`.
//!
//! Probes that are not the traffic's own are objects by themselves, in `bin/`: what one kernel refuses of one of them
//! costs nothing but that one.

#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod add;
mod again;
mod cgroup_skb;
mod dialed;
mod dns;
mod edges;
mod empty;
mod find;
mod histogram;
mod maps;
mod opaque;
mod packet;
mod program;
mod round_trip;
mod socket;

/// Logs an edge that was made. In a normal run the level is a constant below debug, and the verifier drops this.
#[inline(always)]
fn tell_edge(key: &observer_common::edge::EdgeKey, slot: u32) {
    aya_log_ebpf::debug!(
        (),
        "cgroup {} has a new edge: protocol {}, port {}, slot {}",
        key.cgroup,
        key.protocol,
        key.port,
        slot
    );
}
