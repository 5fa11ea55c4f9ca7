//! HAProxy and nginx, which shed at the same limit as we do.
//!
//! One worker without logs each. HAProxy rejects by a reset, nginx's stream module ends; both send
//! a 503 where they speak HTTP.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::process::{Server, pinned};

/// Connections that each server holds before it sheds.
pub(crate) const LIMIT: usize = 100;

/// Else nginx makes folders of the host's, which has none where it is not installed.
const TEMPORARY: &str = "client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path \
                         fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;";

/// Where the peers' programs are, and their settings.
#[derive(Debug)]
pub(crate) struct Peers {
    packages: PathBuf,
    settings: TempDir,
}

impl Peers {
    /// `packages`: the folder where Debian's packages are unpacked.
    pub(crate) fn new(packages: &Path) -> Result<Self> {
        let settings = tempfile::tempdir().context("no temporary folder")?;
        Ok(Self { packages: packages.to_path_buf(), settings })
    }

    /// Resets what is above the limit; 200 to requests of who is admitted.
    pub(crate) fn haproxy_rejects(&self, port: u16) -> Result<Server> {
        self.haproxy(
            port,
            "mode http\n  tcp-request connection reject if { fe_conn gt LIMIT }\n  \
             http-request return status 200 content-type text/plain string ok",
        )
    }

    /// 503 above the limit.
    pub(crate) fn haproxy_denies(&self, port: u16) -> Result<Server> {
        self.haproxy(
            port,
            "mode http\n  http-request return status 503 hdr retry-after 1 if { fe_conn gt LIMIT }\n  \
             http-request return status 200 content-type text/plain string ok",
        )
    }

    /// Ends what is above the limit; who is admitted speaks with nginx itself, by a Unix socket.
    pub(crate) fn nginx_limits(&self, port: u16) -> Result<Server> {
        let folder = self.settings.path();
        let backend = folder.join(format!("{port}.sock"));
        let backend = backend.display();
        self.nginx(
            port,
            &format!(
                "stream {{\n limit_conn_zone $server_port zone=all:1m;\n server {{ listen \
                 127.0.0.1:{port} backlog=4096; limit_conn all {LIMIT}; limit_conn_log_level info; \
                 proxy_pass unix:{backend}; }}\n}}\n\
                 http {{ {TEMPORARY} access_log off; client_header_timeout 600s; keepalive_timeout 600s; keepalive_requests 1000000; server {{ listen unix:{backend}; \
                 location / {{ return 200 ok; }} }} }}\n"
            ),
        )
    }

    fn haproxy(&self, port: u16, rules: &str) -> Result<Server> {
        let path = self.settings.path().join(format!("haproxy-{port}"));
        let rules = rules.replace("LIMIT", &LIMIT.to_string());
        let text = format!(
            "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  timeout client 600s\n  timeout \
             http-keep-alive 600s\n  timeout http-request 600s\nfrontend all\n  bind \
             127.0.0.1:{port} backlog 4096\n  {rules}\n"
        );
        fs::write(&path, text)?;
        let libraries = self.packages.join("usr/lib/x86_64-linux-gnu");
        let mut command = pinned();
        command.arg(self.packages.join("usr/sbin/haproxy")).args(["-db", "-q", "-f"]).arg(&path);
        Server::start(command.env("LD_LIBRARY_PATH", libraries), port)
    }

    fn nginx(&self, port: u16, sections: &str) -> Result<Server> {
        let path = self.settings.path().join(format!("nginx-{port}"));
        let module = self.packages.join("usr/lib/nginx/modules/ngx_stream_module.so");
        let text = format!(
            "load_module {};\ndaemon off;\nmaster_process off;\nworker_processes 1;\nerror_log \
             /dev/null crit;\npid {}.pid;\nevents {{ worker_connections 4000; }}\n{sections}",
            module.display(),
            path.display(),
        );
        fs::write(&path, text)?;
        let mut command = pinned();
        let program = self.packages.join("usr/sbin/nginx");
        command.arg(program).args(["-e", "/dev/null", "-p"]).arg(self.settings.path());
        Server::start(command.arg("-c").arg(&path), port)
    }
}
