//! The demo's pods and what they say to each other.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use crate::actor::{Command, ServeMode, Upstream};
use crate::node::Node;
use crate::pod::{Pod, PodSpec, Qos};

const PROXY_PORT: u16 = 8000;
const APP_PORT: u16 = 8080;
const HEALTH_PORT: u16 = 9090;
const SYSLOG_PORT: u16 = 5140;
const DATABASE_PORT: u16 = 5432;

/// Three pods: a web application behind a proxy, a client of it, a database.
#[derive(Debug)]
pub struct Scene {
    // Dropped in this order: clients before the servers they call, the node last.
    frontend: Pod,
    web: Pod,
    database: Pod,
    node: Node,
}

impl Scene {
    /// Makes the pods and starts their servers. Nobody calls them yet.
    pub fn create(node: Node) -> Result<Self> {
        let database = Pod::create(
            &node,
            PodSpec::new("data", "db-0", &["postgres"])
                .label("app", "db")
                .owner("StatefulSet", "db")
                .qos(Qos::Guaranteed),
        )?;
        let web = Pod::create(
            &node,
            PodSpec::new("shop", "web-6d4cf56db6-x2x7q", &["proxy", "app", "log-shipper"])
                .label("app", "web")
                .label("pod-template-hash", "6d4cf56db6")
                .owner("ReplicaSet", "web-6d4cf56db6"),
        )?;
        let frontend = Pod::create(
            &node,
            PodSpec::new("shop", "frontend-7c9f8b6d5-q8k2m", &["frontend"])
                .label("app", "frontend")
                .label("pod-template-hash", "7c9f8b6d5")
                .owner("ReplicaSet", "frontend-7c9f8b6d5")
                .qos(Qos::BestEffort),
        )?;
        let scene = Self { web, frontend, database, node };
        scene.serve()?;
        Ok(scene)
    }

    /// The pods.
    pub fn pods(&self) -> [&Pod; 3] {
        [&self.web, &self.frontend, &self.database]
    }

    /// The node that they stand on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    fn serve(&self) -> Result<()> {
        let database = SocketAddr::from((self.database.ipv4(), DATABASE_PORT));
        let postgres = self.database.container("postgres")?;
        postgres.serve_tcp(database, ServeMode::request_response(180, 1_400))?;
        postgres.run(&Command::Touch { mib: 64 })?;

        let syslog = SocketAddr::from((Ipv4Addr::LOCALHOST, SYSLOG_PORT));
        self.web.container("log-shipper")?.serve_udp(syslog, false)?;

        let app = self.web.container("app")?;
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, APP_PORT));
        let mode = ServeMode::RequestResponse {
            request_bytes: 700,
            response_bytes: 12_000,
            upstreams: vec![
                Upstream::Tcp { to: database, request_bytes: 180, response_bytes: 1_400 },
                Upstream::Udp { to: syslog, bytes: 220 },
            ],
        };
        app.serve_tcp(local, mode)?;
        app.serve_tcp(health(), ServeMode::request_response(90, 2_000))?;
        app.run(&Command::Touch { mib: 32 })?;

        let upstreams = vec![Upstream::Tcp { to: local, request_bytes: 700, response_bytes: 12_000 }];
        let mode = ServeMode::RequestResponse { request_bytes: 600, response_bytes: 12_000, upstreams };
        self.web.container("proxy")?.serve_tcp((self.web.ipv4(), PROXY_PORT).into(), mode)?;
        Ok(())
    }

    /// Lets the clients call, until the pods go.
    pub fn start_traffic(&self) -> Result<()> {
        let call = Command::TcpRequests {
            to: (self.web.ipv4(), PROXY_PORT).into(),
            connections: 4,
            requests: 5,
            request_bytes: 600,
            response_bytes: 12_000,
            parallel: 2,
        };
        let page = vec![call, Command::Burn { cpu_ms: 5 }];
        self.frontend.container("frontend")?.start(page, Duration::from_millis(100), None)?;

        let check = Command::TcpRequests {
            to: health(),
            connections: 1,
            requests: 1,
            request_bytes: 90,
            response_bytes: 2_000,
            parallel: 1,
        };
        self.web.container("log-shipper")?.start(vec![check], Duration::from_millis(500), None)?;
        let work = vec![Command::Burn { cpu_ms: 20 }];
        self.web.container("app")?.start(work, Duration::from_millis(200), None)?;
        Ok(())
    }
}

fn health() -> SocketAddr {
    SocketAddr::from((Ipv6Addr::LOCALHOST, HEALTH_PORT))
}
