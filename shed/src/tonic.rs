//! tonic serves the streams, by `serve_with_incoming_shutdown`; its requests know their peers.
//!
//! tonic ends by itself when the stream does, without an error: whether the listener failed says
//! [`Handle::fatal`](crate::Handle::fatal). Over TLS, tonic itself knows rustls' streams.

use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::conn::ShedStream;

impl Connected for ShedStream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: self.local_addr().ok(), remote_addr: Some(self.peer_addr()) }
    }
}

#[cfg(feature = "tls")]
impl Connected for crate::Staged {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.get_ref().connect_info()
    }
}
