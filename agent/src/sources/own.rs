//! The agent's own network namespace: counters, settings and UDP sockets, in each sample or now and
//! then.

use std::{path::Path, sync::Arc};

use super::{
    Sources,
    netstat::{self, Fields, NET},
    sock_diag::SockDiagError,
    sockstat, sysctl, udp,
};
use crate::{
    input::{Absent, Known, Sockstat, UdpSocket},
    time::{Monotonic, Nanos},
};

/// Limits change rarely: they are read in every tenth sample.
const SYSCTLS_EVERY: u64 = 10;

/// How often the own namespace's UDP sockets are read.
const UDP_EVERY: Nanos = Nanos(10_000_000_000);

impl Sources {
    /// PassiveOpens, CurrEstab, and the other fields of the same file.
    pub(super) fn read_snmp(&mut self, fields: &mut Fields) -> Known<(Known<u64>, Known<u64>)> {
        let Ok(netstat) = &mut self.netstat else { return Err(Absent::Unreadable) };
        let result = netstat.snmp(fields);
        let connected = self.note("snmp", result)?.ok_or(Absent::NotOnThisKernel);
        Ok((fields.get("PassiveOpens").copied().ok_or(Absent::NotOnThisKernel), connected))
    }

    pub(super) fn read_netstat(&mut self, fields: &mut Fields) -> Known<()> {
        if self.passes.is_multiple_of(SYSCTLS_EVERY) {
            self.sysctls = sysctl::read().into();
            self.reserved_ports = sysctl::reserved_ports();
            self.tcp_memory_limits = sockstat::limits();
        }
        let Ok(netstat) = &mut self.netstat else { return Err(Absent::Unreadable) };
        let result = netstat.netstat(fields);
        self.note("netstat", result)
    }

    pub(super) fn read_sockstat(&mut self) -> Known<Sockstat> {
        let result = sockstat::read(Path::new(NET));
        self.note("sockstat", result)
    }

    /// The own namespace's UDP sockets, now and then; `fields` gets what belongs to them.
    pub(super) fn read_udp(
        &mut self,
        at: Monotonic,
        fields: &mut Fields,
    ) -> Known<Arc<Vec<UdpSocket>>> {
        let sockets = match &self.udp {
            Some((then, sockets)) if at - *then < UDP_EVERY => sockets.clone(),
            Some(_) | None => {
                let errors = netstat::udp6_errors(Path::new(NET));
                self.udp6_errors = self.note("snmp6", errors).unwrap_or_default();
                let result = udp::read();
                let absent = result.as_ref().map_err(SockDiagError::absent).err();
                let known = self.note("udp", result).map(Arc::new);
                let known = known.map_err(|unreadable| absent.unwrap_or(unreadable));
                self.udp.insert((at, known)).1.clone()
            }
        };
        fields.extend(&self.udp6_errors);
        sockets
    }
}
