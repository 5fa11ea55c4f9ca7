//! Where the running kernel keeps what the programs read.
//!
//! In: /sys/kernel/btf/vmlinux. Out: [`Offsets`]. Cost: some 10 ms, once.

use backlogd_abi::{ABSENT, Offsets};

use super::btf::{Btf, BtfError};

/// Where the fields are. One that only some programs need is [`ABSENT`] where the kernel lacks it.
///
/// # Errors
/// [`BtfError::NoField`]: a field that this kernel lacks and no program works without.
pub(super) fn offsets(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    let optional = |structure, path| btf.offset(structure, path).unwrap_or(ABSENT);
    let (v6only_byte, v6only_mask) =
        btf.bit("sock", "__sk_common.skc_ipv6only").unwrap_or((ABSENT, ABSENT));
    Ok(Offsets {
        state: btf.offset("sock", "__sk_common.skc_state")?,
        family: btf.offset("sock", "__sk_common.skc_family")?,
        port: btf.offset("sock", "__sk_common.skc_num")?,
        addr4: btf.offset("sock", "__sk_common.skc_rcv_saddr")?,
        addr6: btf.offset("sock", "__sk_common.skc_v6_rcv_saddr")?,
        net: btf.offset("sock", "__sk_common.skc_net.net")?,
        inum: btf.offset("net", "ns.inum")?,
        protocol: btf.offset("sock", "sk_protocol")?,
        ack_backlog: btf.offset("sock", "sk_ack_backlog")?,
        max_ack_backlog: btf.offset("sock", "sk_max_ack_backlog")?,
        drops: btf.offset("sock", "sk_drops")?,
        err: btf.offset("sock", "sk_err")?,
        socket: btf.offset("sock", "sk_socket")?,
        qlen: btf.offset("tcp_sock", "inet_conn.icsk_accept_queue.qlen")?,
        v6only_byte,
        v6only_mask,
        fast_open: btf.offset("tcp_sock", "fastopen_rsk")?,
        peer_port: btf.offset("sock", "__sk_common.skc_dport")?,
        peer4: btf.offset("sock", "__sk_common.skc_daddr")?,
        peer6: btf.offset("sock", "__sk_common.skc_v6_daddr")?,
        syncookies: optional("net", "ipv4.sysctl_tcp_syncookies"),
        skb_protocol: optional("sk_buff", "protocol"),
        skb_head: optional("sk_buff", "head"),
        skb_network: optional("sk_buff", "network_header"),
        skb_transport: optional("sk_buff", "transport_header"),
        socket_sk: optional("socket", "sk"),
        files: optional("task_struct", "files"),
        nsproxy: optional("task_struct", "nsproxy"),
        net_ns: optional("nsproxy", "net_ns"),
        fdt: optional("files_struct", "fdt"),
        fd: optional("fdtable", "fd"),
        private_data: optional("file", "private_data"),
        first_argument: optional("pt_regs", FIRST_ARGUMENT),
        inode: optional("socket_alloc", "vfs_inode.i_ino"),
        io_file: optional("io_kiocb", "file"),
        io_result: optional("io_kiocb", "cqe.res"),
        listen_overflow: btf
            .enumerator("skb_drop_reason", "SKB_DROP_REASON_TCP_LISTEN_OVERFLOW")
            .unwrap_or(ABSENT),
        may_probe: 1,
    })
}

/// The register that holds a system call's first argument (arch/x86/entry/calling.h).
#[cfg(target_arch = "x86_64")]
const FIRST_ARGUMENT: &str = "di";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::ebpf::btf::PATH;

    #[test]
    fn finds_every_field_of_the_running_kernel() {
        let Ok(data) = std::fs::read(PATH) else { return };
        let btf = Btf::parse(&data).expect("the kernel's own");
        let found = offsets(&btf).expect("every field that all programs need");
        assert!(found.family < found.ack_backlog, "{found:?}");
        assert_ne!(0, found.qlen);
        assert_ne!(ABSENT, found.syncookies);
    }

    /// The kernel's BTF with one name spoilt wherever it stands.
    fn without(name: &str) -> Option<Vec<u8>> {
        let mut data = std::fs::read(PATH).ok()?;
        let wanted = [&[0], name.as_bytes(), &[0]].concat();
        let places: Vec<usize> = data
            .windows(wanted.len())
            .enumerate()
            .filter_map(|(at, bytes)| (bytes == wanted).then_some(at + 1))
            .collect();
        places.into_iter().for_each(|at| data[at] = b'?');
        Some(data)
    }

    #[test]
    fn a_field_that_only_some_programs_need_may_be_missing() {
        let Some(data) = without("sysctl_tcp_syncookies") else { return };
        let btf = Btf::parse(&data).expect("as before");
        assert_eq!(ABSENT, offsets(&btf).expect("all others").syncookies);
    }

    #[test]
    fn a_field_that_all_programs_need_may_not() {
        let Some(data) = without("sk_ack_backlog") else { return };
        let btf = Btf::parse(&data).expect("as before");
        let err = offsets(&btf).expect_err("it is gone");
        assert_eq!("this kernel has no field sock.sk_ack_backlog", err.to_string());
    }
}
