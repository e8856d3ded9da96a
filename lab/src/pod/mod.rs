//! Pod sandboxes: cgroups, namespaces, a pause process, containers.

mod channel;
mod container;
mod spec;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

use channel::Channel;
pub use container::{Container, RUNTIME_DELETE_ENV};
pub use spec::{CgroupStyle, ContainerSpec, PodOwner, PodSpec, Qos, container_cgroup, pod_cgroup};

use crate::actor::{Hello, Reply};
use crate::cgroup::Cgroup;
use crate::ids;
use crate::launch::{Entry, Role};
use crate::netlink::{Mac, with_netlink};
use crate::netns::NetNs;
use crate::node::{self, Node, POD_INDEX, Port};

/// How long a process may take to come up.
const STARTING: Duration = Duration::from_secs(30);

/// A running pod. Dropping it removes everything that it consists of.
#[derive(Debug)]
pub struct Pod {
    spec: PodSpec,
    uid: String,
    created: SystemTime,
    // Fields are dropped in this order: processes, then cgroups from the inside out.
    containers: Vec<Container>,
    pause: Option<Pause>,
    cgroup: Cgroup,
    netns: NetNs,
    port: Option<Port>,
    /// Its interface is on the node's bridge.
    plugged: bool,
}

/// The pause container.
#[derive(Debug)]
struct Pause {
    id: String,
    pid: u32,
    // The process goes before its cgroup does.
    _channel: Mutex<Channel>,
    cgroup: Cgroup,
}

/// A process that has been started and has not answered yet.
struct Starting {
    id: String,
    started: SystemTime,
    channel: Channel,
    cgroup: Cgroup,
}

impl Starting {
    fn hello(&mut self) -> Result<Hello> {
        match self.channel.receive(STARTING)? {
            Reply::Done(hello) => Ok(hello),
            Reply::Failed(reason) => Err(anyhow::anyhow!(reason)),
        }
    }
}

impl Pod {
    /// Makes the pod and returns once all its containers have answered.
    pub fn create(node: &Node, spec: PodSpec) -> Result<Self> {
        let what = format!("pod {}/{}", spec.namespace, spec.name);
        Self::try_create(node, spec).with_context(|| format!("making the {what}"))
    }

    fn try_create(node: &Node, spec: PodSpec) -> Result<Self> {
        let uid = spec.uid.clone().map_or_else(ids::pod_uid, Ok)?;
        let path = pod_cgroup(&spec.prefix, &spec.style, spec.qos, &uid);
        let cgroup = Cgroup::create(node.hierarchies(), &path)?;
        let (netns, port) = if spec.host_network {
            (NetNs::current()?, None)
        } else {
            (NetNs::create(node::set_up_pod)?, Some(node.allocate(spec.address)?))
        };
        let containers = spec.containers.clone();
        let mut pod = Self {
            spec,
            uid,
            created: SystemTime::now(),
            containers: Vec::new(),
            pause: None,
            cgroup,
            netns,
            port,
            plugged: false,
        };
        let pause = match pod.spec.style {
            CgroupStyle::Parent(_) => None,
            CgroupStyle::Cgroupfs | CgroupStyle::Systemd => Some(pod.start_pause(node)?),
        };
        if let Some(port) = pod.port {
            // The pause process comes up meanwhile.
            node.connect(&pod.netns, port)?;
            pod.plugged = true;
        }
        if let Some(mut pause) = pause {
            let pid = pause.hello()?.pid;
            pod.pause = Some(Pause { id: pause.id, pid, _channel: Mutex::new(pause.channel), cgroup: pause.cgroup });
        }
        pod.add_containers(node, &containers)?;
        Ok(pod)
    }

    /// Adds a container to the running pod.
    pub fn add_container(&mut self, node: &Node, spec: &ContainerSpec) -> Result<&Container> {
        self.add_containers(node, std::slice::from_ref(spec))?;
        self.container(&spec.name)
    }

    /// Ends a container and removes its cgroup.
    pub fn remove_container(&mut self, name: &str) -> Result<()> {
        let before = self.containers.len();
        self.containers.retain(|container| container.name() != name);
        ensure!(self.containers.len() < before, "the pod has no container {name}");
        Ok(())
    }

    fn add_containers(&mut self, node: &Node, specs: &[ContainerSpec]) -> Result<()> {
        let mut starting = Vec::new();
        for spec in specs {
            let join = self.namespace_holder();
            let mut process = self.start_container(node, spec, join)?;
            if join.is_none() {
                // The first container of a pod without pause: the others join its namespaces.
                let hello = process.hello()?;
                self.containers.push(running(spec, process, hello));
            } else {
                starting.push((spec, process));
            }
        }
        for (spec, mut process) in starting {
            let hello = process.hello()?;
            self.containers.push(running(spec, process, hello));
        }
        Ok(())
    }

    /// The process whose IPC and UTS namespaces the pod shares.
    fn namespace_holder(&self) -> Option<u32> {
        self.pause.as_ref().map(|pause| pause.pid).or_else(|| self.containers.first().map(Container::pid))
    }

    fn start_pause(&self, node: &Node) -> Result<Starting> {
        let entry = Entry { name: "pause".to_owned(), hostname: Some(self.spec.name.clone()), ..self.entry() };
        self.start(node, "pause", entry, &Role::Pause)
    }

    fn start_container(&self, node: &Node, spec: &ContainerSpec, join: Option<u32>) -> Result<Starting> {
        let entry = Entry {
            name: spec.name.clone(),
            join,
            hostname: join.is_none().then(|| self.spec.name.clone()),
            own_pids: spec.isolated,
            own_mounts: spec.isolated,
            ..self.entry()
        };
        self.start(node, &spec.name, entry, &Role::actor(&spec.first)?)
    }

    fn entry(&self) -> Entry {
        // On the host network that of the calling thread, which need not be the one of the process.
        Entry { parent: std::process::id(), net: Some(self.netns.path()), ..Entry::default() }
    }

    fn start(&self, node: &Node, name: &str, mut entry: Entry, role: &Role) -> Result<Starting> {
        let id = ids::container_id()?;
        let path = self.cgroup.path().join(container_cgroup(&self.spec.style, &id));
        let cgroup = Cgroup::create(node.hierarchies(), &path)?;
        entry.cgroup = path;
        let command = node.launcher().command(&entry, role)?;
        let what = format!("container {name} of pod {}/{}", self.spec.namespace, self.spec.name);
        let channel = Channel::start(what, command)?;
        Ok(Starting { id, started: SystemTime::now(), channel, cgroup })
    }

    /// What was asked for.
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// The pod's UID.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// When it was made.
    pub fn created(&self) -> SystemTime {
        self.created
    }

    /// Its IPv4 address; the node's loopback address for a pod on the host network.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.port.map_or(Ipv4Addr::LOCALHOST, |port| port.v4)
    }

    /// Its IPv6 address; the node's loopback address for a pod on the host network.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.port.map_or(Ipv6Addr::LOCALHOST, |port| port.v6)
    }

    /// The hardware address of its interface; `None` on the host network.
    pub fn mac(&self) -> Option<Mac> {
        self.port.map(|port| port.mac)
    }

    /// Its containers, without pause.
    pub fn containers(&self) -> &[Container] {
        &self.containers
    }

    /// The container of this name.
    pub fn container(&self, name: &str) -> Result<&Container> {
        self.containers
            .iter()
            .find(|container| container.name() == name)
            .with_context(|| format!("pod {}/{} has no container {name}", self.spec.namespace, self.spec.name))
    }

    /// The id of the sandbox: of the pause container, else of the first.
    pub fn sandbox_id(&self) -> Option<&str> {
        self.pause.as_ref().map(|pause| pause.id.as_str()).or_else(|| self.containers.first().map(Container::id))
    }

    /// The pause process, when there is one.
    pub fn pause_pid(&self) -> Option<u32> {
        self.pause.as_ref().map(|pause| pause.pid)
    }

    /// The cgroup of the pause process, when there is one.
    pub fn pause_cgroup(&self) -> Option<&Path> {
        self.pause.as_ref().map(|pause| pause.cgroup.path())
    }

    /// The pod's own cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The pod's network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// A path to the network namespace that other processes can open.
    pub fn netns_path(&self) -> PathBuf {
        self.netns.path()
    }

    /// Tells two pods each other's hardware addresses, so that not one ARP or neighbour discovery packet
    /// passes between them: then interface counters hold nothing but the traffic asked for.
    pub fn introduce(&self, other: &Self) -> Result<()> {
        self.know(other)?;
        other.know(self)
    }

    /// Sends a network of addresses from this pod to another one, which takes all of them for its own.
    pub fn route(&self, (network, prefix): (impl Into<IpAddr>, u8), to: &Self) -> Result<()> {
        let network = (network.into(), prefix);
        to.netns.run(|| with_netlink(async |netlink| netlink.add_local(network).await))?;
        let gateway = if network.0.is_ipv4() { to.ipv4().into() } else { to.ipv6().into() };
        self.netns.run(|| with_netlink(async |netlink| netlink.add_route(POD_INDEX, network, gateway).await))
    }

    /// Gives the pod one more address.
    pub fn take_address(&self, address: Ipv4Addr) -> Result<()> {
        self.netns.run(|| with_netlink(async |netlink| netlink.add_address(POD_INDEX, address.into(), 32).await))
    }

    fn know(&self, other: &Self) -> Result<()> {
        let (Some(_), Some(port)) = (self.port, other.port) else { return Ok(()) };
        self.netns.run(|| {
            with_netlink(async |netlink| {
                for address in [IpAddr::V4(port.v4), IpAddr::V6(port.v6)] {
                    netlink.add_neighbour(POD_INDEX, address, port.mac).await?;
                }
                Ok(())
            })
        })
    }

    /// Takes the pod off the network, as a runtime does that ends it: the bridge has forgotten at which port it was, so that
    /// the next pod with its address has all that is sent there. A pod that is dropped is taken off once its processes have
    /// ended; before, nobody hears of their end.
    pub fn unplug(&mut self) -> Result<()> {
        if std::mem::take(&mut self.plugged) {
            self.netns.run(|| with_netlink(async |netlink| netlink.remove_link(POD_INDEX).await))?;
        }
        Ok(())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Everything is killed before anything is waited for, so that it ends at the same time.
        for container in &self.containers {
            if let Err(error) = container.cgroup().kill() {
                eprintln!("observer-lab: ending pod {}: {error:#}", self.spec.name);
            }
        }
        // What they say at their end still leaves.
        self.containers.clear();
        if let Err(error) = self.unplug() {
            eprintln!("observer-lab: taking pod {} off the network: {error:#}", self.spec.name);
        }
    }
}

fn running(spec: &ContainerSpec, process: Starting, hello: Hello) -> Container {
    Container {
        name: spec.name.clone(),
        id: process.id,
        started: process.started,
        hello,
        channel: Mutex::new(process.channel),
        cgroup: process.cgroup,
    }
}
