//! The addresses of a name, for all who want them at the same time: getaddrinfo(3) takes a thread and
//! a socket, which no limit counts, and cannot be ended, so there are few lookups, whoever waits.

use std::{
    fmt, io,
    net::{SocketAddr, ToSocketAddrs as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task,
    time::{self, Instant},
};

/// So many lookups are under way at once.
const MOST: usize = 64;
/// A lookup that takes longer is not waited for alone: its question, or the answer, may be lost.
const LATE: Duration = Duration::from_millis(100);

type Addresses = io::Result<Vec<SocketAddr>>;
type Answer = Result<Arc<[SocketAddr]>, Arc<io::Error>>;

/// HOST:PORT, which is looked up whenever somebody wants it and nobody waits for it already.
pub(super) struct Name {
    text: String,
    late: Duration,
    look_up: Arc<dyn Fn(&str) -> Addresses + Send + Sync>,
    lookups: Mutex<Lookups>,
    answers: watch::Sender<Option<Answer>>,
}

#[derive(Debug, Default)]
struct Lookups {
    under_way: usize,
    /// How many were begun, and when the last one was, if it has no answer so far.
    begun: u64,
    last: Option<Instant>,
}

impl Name {
    pub(super) fn new(text: &str) -> Self {
        Self::by(text, LATE, |text| text.to_socket_addrs().map(Iterator::collect))
    }

    fn by(
        text: &str,
        late: Duration,
        look_up: impl Fn(&str) -> Addresses + Send + Sync + 'static,
    ) -> Self {
        Self {
            text: text.to_owned(),
            late,
            look_up: Arc::new(look_up),
            lookups: Mutex::default(),
            answers: watch::Sender::new(None),
        }
    }

    pub(super) fn is(&self, text: &str) -> bool {
        self.text == text
    }

    /// The next answer, to whoever asked.
    ///
    /// # Errors
    /// That of getaddrinfo(3).
    pub(super) async fn addresses(self: &Arc<Self>) -> io::Result<Arc<[SocketAddr]>> {
        let mut answers = self.answers.subscribe();
        loop {
            self.begin();
            // fails only where there is no sender, and `self` is one
            if let Ok(Ok(())) = time::timeout(self.late, answers.changed()).await {
                let answer = answers.borrow().clone().expect("there is one after a change");
                return answer.map_err(|err| io::Error::new(err.kind(), err.to_string()));
            }
        }
    }

    fn lookups(&self) -> MutexGuard<'_, Lookups> {
        self.lookups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a lookup, unless there is one that is not late.
    fn begin(self: &Arc<Self>) {
        let mut lookups = self.lookups();
        let is_awaited = lookups.last.is_some_and(|at| at.elapsed() < self.late);
        if is_awaited || MOST <= lookups.under_way {
            return;
        }
        lookups.under_way += 1;
        lookups.begun += 1;
        lookups.last = Some(Instant::now());
        let (number, name) = (lookups.begun, Arc::clone(self));
        task::spawn_blocking(move || name.ended(number, (name.look_up)(&name.text)));
    }

    fn ended(&self, number: u64, answer: Addresses) {
        let mut lookups = self.lookups();
        lookups.under_way -= 1;
        let is_last = lookups.begun == number;
        if is_last {
            lookups.last = None;
        }
        // what one that was late failed by is not what the last one will say. Under the lock: who
        // comes too late for this answer finds nobody awaited, and begins the next lookup
        if is_last || answer.is_ok() {
            self.answers.send_replace(Some(answer.map(Arc::from).map_err(Arc::new)));
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, lookups, .. } = self;
        f.debug_struct("Name").field("text", text).field("lookups", lookups).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use tokio::task::{JoinHandle, JoinSet};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// A name whose lookups are answered by the test: each says how to answer it.
    fn asked(late: Duration) -> (Arc<Name>, Receiver<Sender<Addresses>>) {
        let (asks, asked) = mpsc::channel();
        let asks = Mutex::new(asks);
        let look_up = move |_: &str| {
            let (answer, answers) = mpsc::channel();
            asks.lock().expect("no panic").send(answer).expect("a test");
            answers.recv().unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()))
        };
        (Arc::new(Name::by("app:80", late, look_up)), asked)
    }

    fn wants(name: &Arc<Name>) -> JoinHandle<io::Result<Arc<[SocketAddr]>>> {
        let name = Arc::clone(name);
        tokio::spawn(async move { name.addresses().await })
    }

    async fn next(asked: &Receiver<Sender<Addresses>>) -> Sender<Addresses> {
        let until = Instant::now() + LONG;
        loop {
            match asked.try_recv() {
                Ok(lookup) => return lookup,
                Err(err) => assert!(Instant::now() < until, "{err}"),
            }
            time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn port(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    async fn got(answer: JoinHandle<io::Result<Arc<[SocketAddr]>>>) -> Result<Vec<u16>, String> {
        let answer = time::timeout(LONG, answer).await.expect("in time").expect("no panic");
        let ports = |all: Arc<[SocketAddr]>| all.iter().map(SocketAddr::port).collect();
        answer.map(ports).map_err(|err| err.to_string())
    }

    #[tokio::test]
    async fn who_wants_it_at_the_same_time_shares_an_answer() {
        let (name, asked) = asked(LONG);
        let all: Vec<_> = (0..100).map(|_| wants(&name)).collect();
        let lookup = next(&asked).await;
        lookup.send(Ok(vec![port(1)])).expect("it waits");
        for answer in all {
            assert_eq!(got(answer).await, Ok(vec![1]));
        }
        assert!(asked.try_recv().is_err(), "there is one lookup");
        // an answer is for those who asked before it
        let later = wants(&name);
        next(&asked).await.send(Ok(vec![port(2)])).expect("it waits");
        assert_eq!(got(later).await, Ok(vec![2]));
    }

    #[tokio::test]
    async fn one_that_is_late_costs_who_waits_little_and_its_failure_nothing() {
        let (name, asked) = asked(Duration::from_millis(100));
        let one = wants(&name);
        let lost = next(&asked).await;
        let second = next(&asked).await;
        lost.send(Err(io::Error::other("no answer"))).expect("it waits");
        time::sleep(Duration::from_millis(20)).await;
        assert!(!one.is_finished());
        second.send(Ok(vec![port(2)])).expect("it waits");
        assert_eq!(got(one).await, Ok(vec![2]));
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all_who_wait() {
        let (name, asked) = asked(LONG);
        let all = [wants(&name), wants(&name)];
        let failed = next(&asked).await;
        failed.send(Err(io::Error::other("no such name"))).expect("it waits");
        for answer in all {
            assert_eq!(got(answer).await, Err("no such name".to_owned()));
        }
    }

    #[tokio::test]
    async fn there_are_few_however_long_they_take() {
        let (name, asked) = asked(Duration::from_millis(1));
        let mut all = JoinSet::new();
        for _ in 0..10 {
            let name = Arc::clone(&name);
            all.spawn(async move { name.addresses().await });
        }
        let mut lookups = Vec::new();
        for _ in 0..MOST {
            lookups.push(next(&asked).await);
        }
        // in which ten more would be late
        time::sleep(Duration::from_millis(50)).await;
        assert!(asked.try_recv().is_err());
        assert_eq!(name.lookups().under_way, MOST);
        lookups.pop().expect("many").send(Ok(vec![port(3)])).expect("it waits");
        for answer in all.join_all().await {
            assert_eq!(*answer.expect("it is known"), [port(3)]);
        }
    }
}
