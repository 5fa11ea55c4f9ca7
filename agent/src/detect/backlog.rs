//! How programs call their backlog argument of listen(2).

/// By the exact name of the program.
const SETTINGS: [(&str, &str); 19] = [
    ("apache2", "`ListenBacklog`, 511 by default"),
    ("envoy", "`tcp_backlog_size` of the listener"),
    ("gunicorn", "`--backlog`, 2048 by default"),
    ("haproxy", "`backlog`, by default the frontend's `maxconn`"),
    ("httpd", "`ListenBacklog`, 511 by default"),
    ("mariadbd", "`back_log`"),
    ("memcached", "`-b`, 1024 by default"),
    ("mysqld", "`back_log`"),
    ("nginx", "`backlog=` of `listen`, 511 by default"),
    ("node", "`backlog` of `server.listen()`, 511 by default"),
    ("node-MainThread", "`backlog` of `server.listen()`, 511 by default"),
    ("nodejs", "`backlog` of `server.listen()`, 511 by default"),
    ("php-fpm", "`listen.backlog`, 511 by default"),
    ("redis-server", "`tcp-backlog`, 511 by default"),
    ("systemd", "`Backlog=` of the socket unit"),
    ("uvicorn", "`--backlog`, 2048 by default"),
    ("uwsgi", "`--listen`, 100 by default"),
    ("uwsgi-core", "`--listen`, 100 by default"),
    ("valkey-server", "`tcp-backlog`, 511 by default"),
];

/// What sets the backlog of a program, by the name of its task.
#[must_use]
pub fn setting(comm: Option<&str>) -> &'static str {
    let comm = comm.unwrap_or_default();
    let find =
        |name: &str| SETTINGS.iter().find(|(it, _)| *it == name).map(|(_, setting)| *setting);
    // `nginx: worker`, as a process may call itself
    let title = comm.split_once(':').map_or(comm, |(name, _)| name);
    // `php-fpm8.2`, as Debian calls the binary
    let bare = title.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    find(title).or_else(|| find(bare)).unwrap_or("the backlog argument of listen(2) in the program")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(comm: &str, expected: &str) {
        assert!(setting(Some(comm)).starts_with(expected), "{comm}: {}", setting(Some(comm)));
    }

    #[test]
    fn a_program_is_known_by_its_whole_name() {
        check("nginx", "`backlog=` of `listen`");
        check("nginx: worker", "`backlog=` of `listen`");
        check("php-fpm8.2", "`listen.backlog`");
        check("apache2", "`ListenBacklog`");
        check("redis-server", "`tcp-backlog`");
        check("systemd", "`Backlog=`");
        for other in [
            "node_exporter",
            "systemd-resolve",
            "systemd-journal",
            "redis-sentinel",
            "nginx-ui",
            "python3",
            "",
        ] {
            check(other, "the backlog argument of listen(2)");
        }
        check("gunicorn: maste", "`--backlog`");
    }
}
