//! The node that pods stand on: a network namespace with a bridge.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Once};

use anyhow::{Context, Result, ensure};

use crate::cgroup::{self, Hierarchy};
use crate::launch::Launcher;
use crate::netlink::{LOOPBACK, Mac, VethEnd, with_netlink};
use crate::netns::{NetNs, set_sysctl};
use crate::sweep::{self, sweep};

/// The node's IPv4 address on the bridge, and the length of its prefix.
pub const ADDRESS_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 88, 0, 1), 16);
/// The node's IPv6 address on the bridge, and the length of its prefix.
pub const ADDRESS_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 1), 64);

const BRIDGE: &str = "cni0";
const BRIDGE_INDEX: u32 = 1000;
const FIRST_VETH_INDEX: u32 = 2000;
/// The index of `eth0` in every pod.
pub(crate) const POD_INDEX: u32 = 100;
const BRIDGE_MAC: Mac = [0x02, 0x88, 0, 0, 0, 1];

/// A network namespace that plays the node.
#[derive(Debug)]
pub struct Node {
    netns: NetNs,
    launcher: Launcher,
    hierarchies: Arc<[Hierarchy]>,
    next: AtomicU16,
    name: Option<PathBuf>,
}

/// What a pod gets on the node's network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Port {
    ordinal: u16,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) mac: Mac,
}

impl Port {
    /// The host's end of the pod's interface: its index and its name.
    pub(crate) fn interface(&self) -> (u32, String) {
        (FIRST_VETH_INDEX + u32::from(self.ordinal), format!("veth{:08x}", self.ordinal))
    }
}

impl Node {
    /// Makes a node whose containers are started by the launcher that [`Launcher::find`] finds.
    pub fn create() -> Result<Self> {
        Self::with_launcher(Launcher::find()?)
    }

    /// Makes a node whose containers are started by this launcher.
    pub fn with_launcher(launcher: Launcher) -> Result<Self> {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(|| {
            if let Err(error) = sweep() {
                eprintln!("observer-lab: sweeping up after earlier runs: {error:#}");
            }
        });
        let hierarchies = cgroup::detect()?.into();
        let netns = NetNs::create(set_up).context("making the node's network")?;
        Ok(Self { netns, launcher, hierarchies, next: AtomicU16::new(2), name: None })
    }

    /// Gives the node's namespace a name, for `ip netns` and `nsenter --net=/run/netns/<name>`.
    pub fn named(mut self, name: &str) -> Result<Self> {
        const DIRECTORY: &str = "/run/netns";
        let path = Path::new(DIRECTORY).join(name);
        ensure!(self.name.is_none(), "the node already has a name");
        std::fs::create_dir_all(DIRECTORY).with_context(|| format!("making {DIRECTORY}"))?;
        std::fs::File::create_new(&path).with_context(|| format!("making {} (is the name taken?)", path.display()))?;
        self.name = Some(path.clone());
        sweep::remember_mount(&path)?;
        rustix::mount::mount_bind(self.netns.path(), &path)
            .with_context(|| format!("naming the node's network namespace {}", path.display()))?;
        Ok(self)
    }

    /// The node's network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// The launcher of the node's containers.
    pub fn launcher(&self) -> &Launcher {
        &self.launcher
    }

    pub(crate) fn hierarchies(&self) -> &Arc<[Hierarchy]> {
        &self.hierarchies
    }

    /// Takes the next free addresses, or those of a pod that is gone, by its IPv4 one.
    pub(crate) fn allocate(&self, again: Option<Ipv4Addr>) -> Result<Port> {
        let ordinal = self.next.fetch_add(1, Ordering::Relaxed);
        ensure!((2..u16::MAX).contains(&ordinal), "the node has no address left for another pod");
        let number = again.map_or(ordinal, |v4| u16::from_be_bytes([v4.octets()[2], v4.octets()[3]]));
        let [high, low] = number.to_be_bytes();
        let [a, b, ..] = ADDRESS_V4.0.octets();
        let v6 = u128::from(ADDRESS_V6.0) & !0xffff | u128::from(number);
        Ok(Port { ordinal, v4: Ipv4Addr::new(a, b, high, low), v6: v6.into(), mac: [0x02, 0x88, 1, 0, high, low] })
    }

    /// Connects a pod's namespace to the bridge.
    pub(crate) fn connect(&self, pod: &NetNs, port: Port) -> Result<()> {
        let (index, name) = port.interface();
        let [high, low] = port.ordinal.to_be_bytes();
        self.netns.run(|| {
            with_netlink(async |netlink| {
                let here = VethEnd { name: &name, index, mac: [0x02, 0x88, 2, 0, high, low] };
                let there = VethEnd { name: "eth0", index: POD_INDEX, mac: port.mac };
                netlink.add_veth(&here, BRIDGE_INDEX, &there, pod.raw_fd()).await?;
                netlink.add_neighbour(BRIDGE_INDEX, port.v4.into(), port.mac).await?;
                netlink.add_neighbour(BRIDGE_INDEX, port.v6.into(), port.mac).await
            })
        })?;
        pod.run(|| {
            with_netlink(async |netlink| {
                netlink.add_address(POD_INDEX, port.v4.into(), ADDRESS_V4.1).await?;
                netlink.add_address(POD_INDEX, port.v6.into(), ADDRESS_V6.1).await?;
                netlink.set_up(POD_INDEX).await?;
                netlink.add_default_v4(POD_INDEX, ADDRESS_V4.0).await?;
                netlink.add_default_v6(POD_INDEX, ADDRESS_V6.0).await?;
                netlink.add_neighbour(POD_INDEX, ADDRESS_V4.0.into(), BRIDGE_MAC).await?;
                netlink.add_neighbour(POD_INDEX, ADDRESS_V6.0.into(), BRIDGE_MAC).await
            })
        })?;
        // Until then the bridge drops what the pod sends and what is sent to it.
        self.netns.run(|| with_netlink(async |netlink| netlink.wait_for_port(index).await))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = sweep::forget_mount(name)
        {
            eprintln!("observer-lab: {error:#}");
        }
    }
}

/// Sets up the node's namespace from within.
fn set_up() -> Result<()> {
    quieten()?;
    set_sysctl("ipv4/ip_forward", "1")?;
    set_sysctl("ipv6/conf/all/forwarding", "1")?;
    with_netlink(async |netlink| {
        netlink.set_up(LOOPBACK).await?;
        netlink.add_bridge(BRIDGE, BRIDGE_INDEX, BRIDGE_MAC).await?;
        netlink.add_address(BRIDGE_INDEX, ADDRESS_V4.0.into(), ADDRESS_V4.1).await?;
        netlink.add_address(BRIDGE_INDEX, ADDRESS_V6.0.into(), ADDRESS_V6.1).await
    })?;
    // The bridge's ports come later. They need no IPv6 of their own, which would talk to the pods.
    set_sysctl("ipv6/conf/default/disable_ipv6", "1")
}

/// Sets up a pod's namespace from within, before it is connected.
pub(crate) fn set_up_pod() -> Result<()> {
    quieten()?;
    // Everybody may open ping sockets, and many connections in a row find a free port.
    set_sysctl("ipv4/ping_group_range", "0 2147483647")?;
    set_sysctl("ipv4/tcp_tw_reuse", "1")?;
    with_netlink(async |netlink| netlink.set_up(LOOPBACK).await)
}

/// Leaves little that makes traffic which nobody asked for, and brings it to the start: not into the
/// middle of somebody's measurement.
fn quieten() -> Result<()> {
    const INTERVAL_MS: &str = "10";
    for family in ["all", "default"] {
        for (name, value) in
            [("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0"), ("router_solicitations", "0")]
        {
            set_sysctl(&format!("ipv6/conf/{family}/{name}"), value)?;
        }
        // Multicast memberships are announced twice, by default within a second of each other.
        let name = "mldv2_unsolicited_report_interval";
        set_sysctl(&format!("ipv6/conf/{family}/{name}"), INTERVAL_MS)?;
        let name = "igmpv3_unsolicited_report_interval";
        set_sysctl(&format!("ipv4/conf/{family}/{name}"), INTERVAL_MS)?;
    }
    // No link-local address: it would be announced.
    set_sysctl("ipv6/conf/default/addr_gen_mode", "1")
}
