//! The accuracy cases on this machine's kernel, against the agent's binary. Needs root.

use observer_lab::cases::{CASES, Scale};

fn run(name: &str) {
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    if let Err(error) = case.run(Scale::Full) {
        panic!("{name}: {error:#}");
    }
}

macro_rules! cases {
    ($($name:ident),+ $(,)?) => {
        $(#[test] fn $name() { run(stringify!($name)); })+

        /// A case that is added must be added here.
        #[test]
        fn every_case_is_tested() {
            assert_eq!(CASES.map(|case| case.name), [$(stringify!($name)),+]);
        }
    };
}

cases!(
    tcp_stream,
    tcp_connections,
    udp_datagrams,
    ipv6,
    own_address,
    pod_to_pod,
    icmp,
    both_names,
    host_network,
    first_packet,
    pods_leave_nothing,
    restart,
);
