//! Couriers against real servers, in real time.

use std::{fs, future::Future, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::{
    net::TcpListener,
    sync::{mpsc::UnboundedReceiver, watch},
    time::{Instant, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

use super::{
    super::{Deliveries, Delivery, Outlets},
    alert,
    server::{Act, Got, start},
    verdicts,
};
use crate::{
    detect::{alert::Verdicts, phase::Severity::Warning},
    outlet::{Auth, Form, Outlet, Url},
};

const PATIENCE: Duration = Duration::from_secs(10);

fn outlet(url: &str) -> Outlet {
    Outlet {
        form: Form::Alertmanager,
        url: Url::parse(url).expect("a URL"),
        ca_file: None,
        auth: Auth::None,
        timeout: Duration::from_millis(300),
        resend: Duration::from_secs(60),
        labels: Vec::new(),
    }
}

fn to(addr: SocketAddr) -> Outlet {
    outlet(&format!("http://{addr}"))
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime starts").block_on(test);
}

/// An agent with one alert, on port 80, that fires.
struct Agent {
    verdicts: watch::Sender<Arc<Verdicts>>,
    outlets: Outlets,
    deliveries: Deliveries,
}

impl Agent {
    fn start(outlets: &[Outlet]) -> Self {
        let (verdicts, seen) = watch::channel(Arc::new(verdicts([alert(80, Warning)])));
        let deliveries = Deliveries::default();
        let outlets = Outlets::start(outlets, "host1".into(), seen, deliveries.clone());
        Self { verdicts, outlets, deliveries }
    }

    fn of(&self, addr: SocketAddr) -> Delivery {
        self.deliveries.all()[&addr.to_string()]
    }

    async fn wait_for(&self, addr: SocketAddr, expected: Delivery) {
        let end = Instant::now() + PATIENCE;
        while self.of(addr) != expected {
            assert!(Instant::now() < end, "{:?}", self.of(addr));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn next(told: &mut UnboundedReceiver<Got>) -> Got {
    timeout(PATIENCE, told.recv()).await.expect("in time").expect("the server runs")
}

#[test]
fn a_receiver_that_fails_hangs_or_closes_is_tried_again() {
    let passing = [401, 403, 404, 408, 429, 500].map(Act::Answer);
    for act in passing.into_iter().chain([Act::Hang, Act::Close]) {
        block_on(async {
            let (addr, mut told) = start(&[act], None).await;
            let agent = Agent::start(&[to(addr)]);
            let first = next(&mut told).await;
            assert!(first.head.starts_with("post /api/v2/alerts http/1.1"), "{}", first.head);
            assert_eq!(1, agent.of(addr).pending);
            let second = next(&mut told).await;
            assert_eq!(first.body[0]["labels"], second.body[0]["labels"]);
            let expected = Delivery { taken: 1, failed: 1, ..Delivery::default() };
            agent.wait_for(addr, expected).await;
        });
    }
}

#[test]
fn an_alert_that_is_refused_is_dropped_and_counted() {
    for status in [400, 413, 422] {
        block_on(async {
            let (addr, mut told) = start(&[Act::Answer(status)], None).await;
            let agent = Agent::start(&[to(addr)]);
            next(&mut told).await;
            agent.wait_for(addr, Delivery { refused: 1, ..Delivery::default() }).await;
        });
    }
}

#[test]
fn a_receiver_that_is_changed_or_goes_is_told_before_what_it_does_not_know() {
    block_on(async {
        let (addr, mut told) = start(&[], None).await;
        let mut agent = Agent::start(&[to(addr)]);
        next(&mut told).await;
        agent.wait_for(addr, Delivery { taken: 1, ..Delivery::default() }).await;
        agent.verdicts.send_replace(Arc::new(verdicts([])));
        let began = Instant::now();
        let changed = Outlet { resend: Duration::from_secs(30), ..to(addr) };
        agent.outlets.configure(&[changed]);
        assert!(began.elapsed() < Duration::from_secs(1));
        let over = next(&mut told).await;
        assert_eq!("2023-11-14T22:14:20.000Z", over.body[0]["endsAt"]);
        agent.verdicts.send_replace(Arc::new(verdicts([alert(81, Warning)])));
        assert_eq!("81", next(&mut told).await.body[0]["labels"]["port"]);
    });
}

#[test]
fn a_receiver_that_goes_and_hangs_is_waited_for_no_longer_than_for_others() {
    block_on(async {
        let (hangs, mut told) = start(&[Act::Hang; 9], None).await;
        let slow = Outlet { timeout: Duration::from_secs(60), ..to(hangs) };
        let mut agent = Agent::start(&[slow]);
        next(&mut told).await;
        agent.outlets.configure(&[]);
        assert_eq!(1, agent.of(hangs).pending);
        // its end takes back what it has pending
        agent.wait_for(hangs, Delivery::default()).await;
    });
}

#[test]
fn a_receiver_that_hangs_hinders_no_other_and_no_stop() {
    block_on(async {
        let (hangs, _told) = start(&[Act::Hang; 9], None).await;
        let (works, mut told) = start(&[], None).await;
        let slow = Outlet { timeout: Duration::from_secs(60), ..to(hangs) };
        let nobody = to(TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap());
        let agent = Agent::start(&[slow, nobody, to(works)]);
        next(&mut told).await;
        agent.verdicts.send_replace(Arc::new(verdicts([])));
        let over = next(&mut told).await;
        assert_eq!("2023-11-14T22:14:20.000Z", over.body[0]["endsAt"]);
        agent.wait_for(works, Delivery { taken: 2, ..Delivery::default() }).await;
        let began = Instant::now();
        agent.outlets.stop().await;
        assert!(began.elapsed() < Duration::from_secs(3));
    });
}

#[test]
fn what_comes_right_before_the_end_is_sent() {
    block_on(async {
        let (addr, mut told) = start(&[], None).await;
        let agent = Agent::start(&[to(addr)]);
        agent.outlets.stop().await;
        assert_eq!("80", next(&mut told).await.body[0]["labels"]["port"]);
    });
}

#[test]
fn a_receiver_that_stays_in_the_configuration_does_not_notice_a_reload() {
    block_on(async {
        let (stays, mut told) = start(&[], None).await;
        let (comes, mut told_then) = start(&[], None).await;
        let mut agent = Agent::start(&[to(stays)]);
        next(&mut told).await;
        agent.outlets.configure(&[to(comes), to(stays)]);
        next(&mut told_then).await;
        agent.outlets.configure(&[to(comes)]);
        // the one that goes knows all there is
        tokio::task::yield_now().await;
        agent.verdicts.send_replace(Arc::new(verdicts([])));
        next(&mut told_then).await;
        assert!(told.try_recv().is_err());
        assert_eq!(Delivery { taken: 1, ..Delivery::default() }, agent.of(stays));
    });
}

#[test]
fn names_prefixes_and_credentials_are_as_configured() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        fs::write(&file, "open sesame\n").expect("it can be written");
        let (addr, mut told) = start(&[], None).await;
        let port = addr.port();
        let bearer = Outlet {
            auth: Auth::Bearer(file.clone()),
            ..outlet(&format!("http://localhost:{port}/am/"))
        };
        let basic = Outlet {
            form: Form::Webhook,
            auth: Auth::Basic { username: "me".into(), password_file: file },
            ..outlet(&format!("http://localhost:{port}/hook"))
        };
        let _agent = Agent::start(&[bearer, basic]);
        let mut heads = [next(&mut told).await.head, next(&mut told).await.head];
        heads.sort();
        assert!(heads[0].starts_with("post /am/api/v2/alerts "), "{}", heads[0]);
        assert!(heads[0].contains("authorization: bearer open sesame"), "{}", heads[0]);
        assert!(heads[0].contains(&format!("host: localhost:{port}")), "{}", heads[0]);
        assert!(heads[1].starts_with("post /hook "), "{}", heads[1]);
        // "me:open sesame", in small letters as all of the head
        assert!(heads[1].contains("authorization: basic bwu6b3blbibzzxnhbwu="), "{}", heads[1]);
    });
}

/// A server for `localhost`, and the file of who vouches for it.
fn certified(ca_file: &Path) -> TlsAcceptor {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test authority");
    let key = KeyPair::generate().expect("a key");
    let ca = params.self_signed(&key).expect("a certificate");
    fs::write(ca_file, ca.pem()).expect("it can be written");
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new(vec!["localhost".into()]).expect("a name");
    let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
    let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], secret)
        .expect("they belong together");
    TlsAcceptor::from(Arc::new(config))
}

#[test]
fn tls_works_for_the_name_that_is_vouched_for_and_for_no_other() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let (ca, other) = (folder.path().join("ca.pem"), folder.path().join("other.pem"));
        drop(certified(&other));
        let (addr, mut told) = start(&[], Some(certified(&ca))).await;
        let port = addr.port();
        let secure = |host: &str, ca_file: &Path| Outlet {
            ca_file: Some(ca_file.into()),
            timeout: PATIENCE,
            ..outlet(&format!("https://{host}:{port}"))
        };
        let wrong_name = secure("127.0.0.1", &ca);
        let agent = Agent::start(&[wrong_name]);
        agent.wait_for(addr, Delivery { failed: 1, pending: 1, ..Delivery::default() }).await;
        let agent = Agent::start(&[secure("127.0.0.1", &other)]);
        agent.wait_for(addr, Delivery { failed: 1, pending: 1, ..Delivery::default() }).await;
        assert!(told.try_recv().is_err());
        let _agent = Agent::start(&[secure("localhost", &ca)]);
        assert_eq!("80", next(&mut told).await.body[0]["labels"]["port"]);
    });
}
