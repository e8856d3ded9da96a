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
            assert_eq!(CASES.iter().map(|case| case.name).collect::<Vec<_>>(), [$(stringify!($name)),+]);
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
    both_families,
    icmp,
    raw_protocols,
    many_peers,
    named_peers,
    folding,
    idle_peers,
    sixty_four,
    one_socket,
    older_datagrams,
    both_names,
    nested_cgroups,
    host_network,
    host_containers,
    peer_detail,
    drivers_and_prefixes,
    resources,
    throttling,
    block_device,
    shared,
    short_containers,
    short_pod,
    compatibility,
    first_packet,
    pods_leave_nothing,
    dns,
    drops,
    oom_kills,
    selection,
    restart,
    interface,
    address_moves,
    address_moves_uncached,
    same_name,
    learned_late,
    churn,
    tcp_hasty,
    tcp_failures,
    tcp_crossed,
    tcp_opened,
    tcp_active,
    tcp_older,
    tcp_older_events,
    older_roles,
    tcp_times,
    tcp_known_times,
    tcp_resets,
    tcp_retransmissions,
    unix_sockets,
    sockets_payload,
    sockets_live,
    sockets_waiting,
    sockets_crossed,
    sockets_restart,
    sockets_named_peers,
    sockets_reused,
    sockets_busy,
    sockets_missed,
    tcp_missed,
    run_queue,
    program_runs,
    program_runs_elsewhere,
);
