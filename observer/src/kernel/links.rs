//! The node's network interfaces, as rtnetlink(7) tells them, and which of them are one end of a pair whose other end is in a
//! sandbox. The question goes to the network namespace that the agent is in, which is the node's.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkLayerType, LinkMessage},
    nsid::{NsidAttribute, NsidMessage},
    tc::TcMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// An interface of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLink {
    /// Its index in the node's network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The number by which the node's namespace knows the one that the other end is in (`IFLA_LINK_NETNSID`); `None` where
    /// the other end is in the node's own, and where there is no other end.
    pub peer_netns: Option<i32>,
    /// Its frames have Ethernet headers.
    pub ethernet: bool,
}

/// Reads all interfaces. Each call asks the kernel anew.
///
/// # Errors
///
/// What the netlink socket says.
pub fn read() -> io::Result<Vec<HostLink>> {
    let mut found = Vec::new();
    ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP, |message| {
        if let RouteNetlinkMessage::NewLink(link) = message {
            found.extend(host_link(&link));
        }
    })?;
    Ok(found)
}

fn host_link(link: &LinkMessage) -> Option<HostLink> {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let peer_netns = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkNetNsId(id) => Some(*id),
        _ => None,
    });
    let ethernet = link.header.link_layer_type == LinkLayerType::Ether;
    Some(HostLink { index: link.header.index, name, peer_netns, ethernet })
}

/// Whether an interface has a clsact filter with this handle, at its ingress or its egress.
///
/// # Errors
///
/// What the netlink socket says.
pub fn has_filter(index: u32, ingress: bool, handle: u32) -> io::Result<bool> {
    /// `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` (include/uapi/linux/pkt_sched.h).
    const PARENTS: [u32; 2] = [0xffff_fff3, 0xffff_fff2];
    let mut question = TcMessage::default();
    question.header.index = index.cast_signed();
    question.header.parent = PARENTS[usize::from(ingress)].into();
    let mut found = false;
    ask(RouteNetlinkMessage::GetTrafficFilter(question), NLM_F_DUMP, |message| {
        if let RouteNetlinkMessage::NewTrafficFilter(filter) = message {
            found |= u32::from(filter.header.handle) == handle;
        }
    })?;
    Ok(found)
}

/// The number by which the node's namespace knows the one at `path` (`RTM_GETNSID`). `None` when no interface of the node
/// leads there: the kernel gives numbers out when it lists interfaces, so this is asked after [`read`].
///
/// # Errors
///
/// When the file cannot be opened, and what the netlink socket says.
pub fn netns_id(path: &Path) -> io::Result<Option<i32>> {
    let file = File::open(path)?;
    let mut question = NsidMessage::default();
    question.attributes.push(NsidAttribute::Fd(file.as_raw_fd().cast_unsigned()));
    let mut id = None;
    ask(RouteNetlinkMessage::GetNsId(question), 0, |message| {
        if let RouteNetlinkMessage::NewNsId(answer) = message {
            id = answer.attributes.iter().find_map(|attribute| match attribute {
                // NETNSA_NSID_NOT_ASSIGNED is -1.
                NsidAttribute::Id(id) => Some(*id).filter(|id| *id >= 0),
                _ => None,
            });
        }
    })?;
    Ok(id)
}

/// The node's ends of a sandbox's interfaces. `netns` are paths by which its namespace may be opened, the best first.
#[must_use]
pub fn ends_of<'a>(links: &'a [HostLink], netns: &[PathBuf], told: &str) -> Vec<&'a HostLink> {
    ends(links, netns.iter().find_map(|path| netns_id(path).ok().flatten()), told)
}

/// The node's ends of a sandbox's interfaces. `netns` is the number of the sandbox's namespace; `told` is a name that the
/// runtime tells, or empty, for one whose namespace cannot be looked at. Pure.
#[must_use]
fn ends<'a>(links: &'a [HostLink], netns: Option<i32>, told: &str) -> Vec<&'a HostLink> {
    let ethernet = || links.iter().filter(|link| link.ethernet);
    let mut ends: Vec<_> = ethernet().filter(|link| netns.is_some() && link.peer_netns == netns).collect();
    if ends.is_empty() && !told.is_empty() {
        ends.extend(ethernet().filter(|link| link.name == told && link.peer_netns.is_some()));
    }
    ends
}

/// Asks and reads until the answer is complete.
fn ask(question: RouteNetlinkMessage, flags: u16, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // The kernel answers at once or not at all.
    let patience = rustix::time::Timespec { tv_sec: 2, tv_nsec: 0 };
    set_receive_timeout(&socket, patience)?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => {
                    each(inner);
                    if !dump {
                        return Ok(());
                    }
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return error.code.map_or(Ok(()), |_| Err(error.to_io())),
                _ => {}
            }
            // Messages are padded to words (NLMSG_ALIGN).
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
    }
}

fn set_receive_timeout(socket: &Socket, timeout: rustix::time::Timespec) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as the socket is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    let timeout = std::time::Duration::try_from(timeout).map_err(io::Error::other)?;
    rustix::net::sockopt::set_socket_timeout(fd, rustix::net::sockopt::Timeout::Recv, Some(timeout))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, peer_netns: Option<i32>) -> HostLink {
        HostLink { index, name: name.into(), peer_netns, ethernet: true }
    }

    #[test]
    fn loopback_is_the_first_interface_and_has_no_other_end() {
        let links = read().unwrap();
        let lo = links.iter().find(|link| link.index == 1).unwrap();
        assert_eq!((lo.name.as_str(), lo.peer_netns, lo.ethernet), ("lo", None, false));
    }

    #[test]
    fn what_is_no_namespace_has_no_number() {
        assert!(netns_id(Path::new("/proc/self/no-such-file")).is_err());
        assert!(netns_id(Path::new("/proc/self/ns/mnt")).is_err());
    }

    #[test]
    fn the_namespace_says_it_then_the_runtime() {
        let mut links = vec![link(1, "eth0", None), link(2, "veth1", Some(0)), link(3, "veth2", Some(1))];
        links.push(link(4, "veth3", Some(1)));
        links.push(HostLink { ethernet: false, ..link(5, "tun0", Some(1)) });
        let found = |netns, told: &str| ends(&links, netns, told).iter().map(|link| link.index).collect::<Vec<_>>();
        assert_eq!(found(Some(1), ""), [3, 4], "all of its interfaces");
        assert_eq!(found(Some(1), "veth1"), [3, 4], "what the kernel says comes first");
        assert_eq!(found(None, "veth1"), [2]);
        assert_eq!(found(Some(7), "veth1"), [2]);
        assert_eq!(found(None, ""), [0; 0], "an interface without another end is nobody's");
        assert_eq!(found(None, "eth0"), [0; 0], "the node's own");
    }
}
