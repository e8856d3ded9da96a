//! Links, addresses, routes and neighbours of the calling thread's network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::{
    BridgePortState, InfoBridgePort, InfoData, InfoPortData, InfoVeth, LinkAttribute, LinkFlags, LinkHeader, LinkInfo,
};
use netlink_packet_route::route::{RouteScope, RouteType};
use rtnetlink::{Error, Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

/// The index that every loopback interface has.
pub const LOOPBACK: u32 = 1;

/// A hardware address.
pub type Mac = [u8; 6];

/// Runs netlink requests in the network namespace of the calling thread.
pub fn with_netlink<T>(work: impl AsyncFnOnce(&Netlink) -> Result<T>) -> Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("starting a runtime for netlink")?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink route socket")?;
        tokio::spawn(connection);
        work(&Netlink { handle }).await
    })
}

/// A netlink route socket.
pub struct Netlink {
    handle: Handle,
}

/// One end of a veth pair.
pub struct VethEnd<'a> {
    /// The interface's name.
    pub name: &'a str,
    /// Its index, chosen by the caller so that nothing has to be looked up.
    pub index: u32,
    /// Its hardware address.
    pub mac: Mac,
}

impl Netlink {
    /// Makes a bridge that is up.
    pub async fn add_bridge(&self, name: &str, index: u32, mac: Mac) -> Result<()> {
        let message = LinkBridge::new(name).set_header(header(index)).address(mac.to_vec()).up().build();
        let outcome = self.handle.link().add(message).execute().await;
        if let Err(Error::NetlinkError(message)) = &outcome
            && message.to_io().raw_os_error() == Some(libc::EOPNOTSUPP)
        {
            anyhow::bail!(
                "this kernel has no bridge interfaces: load the module `bridge` (in Debian's kernels: \
                 modprobe bridge; in an initramfs: insmod llc, stp, bridge)"
            );
        }
        outcome.with_context(|| format!("making the bridge {name}"))
    }

    /// Makes a veth pair: one end here, as a port of a bridge and up; the other in the namespace
    /// behind `peer_netns`.
    pub async fn add_veth(&self, here: &VethEnd<'_>, bridge: u32, peer: &VethEnd<'_>, peer_netns: i32) -> Result<()> {
        let peer_message = LinkMessageBuilder::<LinkUnspec>::default()
            .set_header(header(peer.index))
            .name(peer.name.to_owned())
            .address(peer.mac.to_vec())
            .setns_by_fd(peer_netns)
            .build();
        let message = LinkVeth::new(here.name, peer.name)
            .set_header(header(here.index))
            .address(here.mac.to_vec())
            .controller(bridge)
            .up()
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer_message)))
            .build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .with_context(|| format!("making the veth pair {} - {} (needs the module `veth`)", here.name, peer.name))
    }

    /// Waits until a bridge forwards over a port: it does so a little after the other end is up.
    pub async fn wait_for_port(&self, index: u32) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let deadline = Instant::now() + PATIENCE;
        while !self.forwards(index).await? {
            ensure!(Instant::now() < deadline, "the bridge did not forward over its port {index} within {PATIENCE:?}");
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    async fn forwards(&self, index: u32) -> Result<bool> {
        let mut links = self.handle.link().get().match_index(index).execute();
        let link = links
            .try_next()
            .await
            .with_context(|| format!("asking for the state of interface {index}"))?
            .with_context(|| format!("there is no interface {index}"))?;
        let infos = link.attributes.iter().filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
        Ok(infos.flatten().any(|info| match info {
            LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                port.contains(&InfoBridgePort::State(BridgePortState::Forwarding))
            }
            _ => false,
        }))
    }

    /// Sets an interface up.
    pub async fn set_up(&self, index: u32) -> Result<()> {
        self.handle
            .link()
            .set(LinkUnspec::new_with_index(index).up().build())
            .execute()
            .await
            .with_context(|| format!("setting interface {index} up"))
    }

    /// Gives an interface an address that works at once (no duplicate address detection).
    pub async fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
        let mut request = self.handle.address().add(index, address, prefix);
        if address.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.with_context(|| format!("adding {address}/{prefix} to interface {index}"))
    }

    /// Takes all addresses away from an interface.
    pub async fn remove_addresses(&self, index: u32) -> Result<()> {
        let mut addresses = self.handle.address().get().set_link_index_filter(index).execute();
        while let Some(address) = addresses.try_next().await.context("listing addresses")? {
            self.handle
                .address()
                .del(address)
                .execute()
                .await
                .with_context(|| format!("removing an address from interface {index}"))?;
        }
        Ok(())
    }

    /// Sends what has no better IPv4 route to a gateway.
    pub async fn add_default_v4(&self, index: u32, gateway: Ipv4Addr) -> Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).build();
        self.handle
            .route()
            .add(route)
            .execute()
            .await
            .with_context(|| format!("adding the default route via {gateway}"))
    }

    /// Sends a network to a gateway.
    pub async fn add_route(&self, index: u32, (network, prefix): (IpAddr, u8), gateway: IpAddr) -> Result<()> {
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(network, prefix)
            .and_then(|route| route.gateway(gateway))
            .with_context(|| format!("{network}/{prefix} via {gateway} is no route"))?
            .output_interface(index)
            .build();
        self.handle
            .route()
            .add(route)
            .execute()
            .await
            .with_context(|| format!("adding the route to {network}/{prefix} via {gateway}"))
    }

    /// Makes every address of a network one of this namespace's own.
    pub async fn add_local(&self, (network, prefix): (IpAddr, u8)) -> Result<()> {
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(network, prefix)
            .with_context(|| format!("{network}/{prefix} is no network"))?
            .output_interface(LOOPBACK)
            .table_id(libc::RT_TABLE_LOCAL.into())
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .build();
        self.handle
            .route()
            .add(route)
            .execute()
            .await
            .with_context(|| format!("making {network}/{prefix} this namespace's own"))
    }

    /// Sends what has no better IPv6 route to a gateway.
    pub async fn add_default_v6(&self, index: u32, gateway: Ipv6Addr) -> Result<()> {
        let route = RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).output_interface(index).build();
        self.handle
            .route()
            .add(route)
            .execute()
            .await
            .with_context(|| format!("adding the default route via {gateway}"))
    }

    /// Removes an interface, and the other end of a pair with it. One that is gone is no error.
    pub async fn remove_link(&self, index: u32) -> Result<()> {
        match self.handle.link().del(index).execute().await {
            // A pair ends with either of its ends.
            Err(Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(()),
            outcome => outcome.with_context(|| format!("removing interface {index}")),
        }
    }

    /// Tells the kernel for good which hardware address an IP address has, so that it never asks.
    pub async fn add_neighbour(&self, index: u32, address: IpAddr, mac: Mac) -> Result<()> {
        self.handle
            .neighbours()
            .add(index, address)
            .link_layer_address(&mac)
            .replace()
            .execute()
            .await
            .with_context(|| format!("adding the neighbour {address} on interface {index}"))
    }
}

fn header(index: u32) -> LinkHeader {
    LinkHeader { index, flags: LinkFlags::empty(), ..LinkHeader::default() }
}
