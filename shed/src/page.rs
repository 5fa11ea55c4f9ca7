//! What generations of a server share: a page of memory with the words of their limits.
//!
//! In: memory, made here or inherited, and /proc/PID/stat of the processes in it; of those that
//! /proc hides, whether they exist. Out: for each listener, by its name, the words of its limits,
//! and who has its socket: which generations, and whether somebody else; this process' lane in them.
//! Cost: one such file for each other generation, four times a second and listener.
//!
//! Words of it: what it is, its layout, who has each lane, and for each listener its name's hash,
//! its two [limits](crate::slots) and who has its socket. A lane belongs to a process; one that
//! died has its lane cleared by whoever sees it, and only then can another have it. A generation
//! that drains has its lane, and not the socket: its connections are open yet, and it accepts
//! nobody.
//!
//! Not here: how places are taken in a word ([`slots`]), who waits for one
//! ([`words`](crate::words)), and how the memory comes to the next generation
//! ([`handover`](crate::handover)).

use std::{
    error::Error,
    fmt,
    fs::{self, File},
    io, process,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time;

use crate::{
    slots::{self, Lane},
    sys::{self, Map},
};

const BYTES: u64 = 4_096;
const WORDS: usize = 512;
const MAGIC: u64 = u64::from_be_bytes(*b"shedpage");
/// What the words mean.
const LAYOUT: u64 = 2;

const AT_MAGIC: usize = 0;
const AT_LAYOUT: usize = 1;
const AT_LANES: usize = 2;
const AT_ENTRIES: usize = 8;
/// Words of an entry: the hash of a name, soft, hard, the socket: in the lane of each generation,
/// how many it has, and [`BORROWED`].
const ENTRY: usize = 4;
const ENTRIES: usize = (WORDS - AT_ENTRIES) / ENTRY;
/// Somebody who is no generation has the socket, too. In no lane.
const BORROWED: u64 = 1 << 63;

/// How often it is looked whether a generation died.
const LOOK: Duration = Duration::from_millis(250);

/// The page, and this process' lane in it.
#[derive(Debug)]
pub(crate) struct Page {
    words: Map,
    lane: Lane,
    /// In the word of the lane.
    owner: u64,
}

/// Why a process cannot share limits.
#[derive(Debug)]
#[non_exhaustive]
pub enum PageError {
    /// The memory cannot be had.
    Memory(io::Error),
    /// It is of another version of this crate, or none of it.
    Layout {
        /// What it says of itself.
        got: u64,
    },
    /// As many generations serve as can.
    Lanes,
    /// It has as many listeners as it can.
    Listeners,
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(_) => f.write_str("the memory that generations share cannot be had"),
            Self::Layout { got } => write!(
                f,
                "the limits of the generation before have layout {got}, expected {LAYOUT}: the \
                 same version of backlogd-shed"
            ),
            Self::Lanes => write!(
                f,
                "{} generations have open connections, expected fewer: one has to drain first",
                Lane::ALL.len()
            ),
            Self::Listeners => {
                write!(f, "generations share {ENTRIES} listeners already, expected no more")
            }
        }
    }
}

impl Error for PageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Memory(err) => Some(err),
            Self::Layout { .. } | Self::Lanes | Self::Listeners => None,
        }
    }
}

impl Page {
    /// A page of its own, for a first generation, and its memory, for the next one.
    pub(crate) fn create() -> Result<(Self, File), PageError> {
        let memory = sys::memory(BYTES).map_err(PageError::Memory)?;
        let words = Map::new(&memory, WORDS).map_err(PageError::Memory)?;
        words[AT_LAYOUT].store(LAYOUT, Ordering::SeqCst);
        words[AT_MAGIC].store(MAGIC, Ordering::SeqCst);
        Ok((Self::enter(words)?, memory))
    }

    /// The page of the generation before.
    pub(crate) fn open(memory: &File) -> Result<Self, PageError> {
        let words = Map::new(memory, WORDS).map_err(PageError::Memory)?;
        let layout = words[AT_LAYOUT].load(Ordering::SeqCst);
        if words[AT_MAGIC].load(Ordering::SeqCst) != MAGIC || layout != LAYOUT {
            return Err(PageError::Layout { got: layout });
        }
        Self::enter(words)
    }

    /// Takes a lane.
    fn enter(words: Map) -> Result<Self, PageError> {
        let owner = Process::own().map_err(PageError::Memory)?.packed();
        for (lane, word) in Lane::ALL.into_iter().zip(&words[AT_LANES..]) {
            reap(&words, lane);
            if word.compare_exchange(0, owner, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                return Ok(Self { words, lane, owner });
            }
        }
        Err(PageError::Lanes)
    }

    pub(crate) fn lane(&self) -> Lane {
        self.lane
    }

    /// The entry of the listener `name`.
    pub(crate) fn entry(&self, name: &str) -> Result<usize, PageError> {
        let hash = hash(name);
        (0..ENTRIES)
            .map(|entry| AT_ENTRIES + entry * ENTRY)
            .find(|&at| {
                let found =
                    self.words[at].compare_exchange(0, hash, Ordering::SeqCst, Ordering::SeqCst);
                found.is_ok() || found == Err(hash)
            })
            .ok_or(PageError::Listeners)
    }

    pub(crate) fn soft(&self, entry: usize) -> &AtomicU64 {
        &self.words[entry + 1]
    }

    pub(crate) fn hard(&self, entry: usize) -> &AtomicU64 {
        &self.words[entry + 2]
    }

    fn socket(&self, entry: usize) -> &AtomicU64 {
        &self.words[entry + 3]
    }

    /// Somebody who is no generation has the socket, too: systemd.
    pub(crate) fn borrows(&self, entry: usize) {
        self.socket(entry).fetch_or(BORROWED, Ordering::SeqCst);
    }

    pub(crate) fn is_borrowed(&self, entry: usize) -> bool {
        self.socket(entry).load(Ordering::SeqCst) & BORROWED != 0
    }

    /// Whether other generations have the socket; one that died has it until somebody looks.
    pub(crate) fn others_listen(&self, entry: usize) -> bool {
        let listens = |lane| slots::taken_by(self.socket(entry), lane) != 0;
        Lane::ALL.into_iter().any(|lane| lane != self.lane && listens(lane))
    }

    /// Whether `lane` has an owner, other than one who clears it.
    fn is_there(&self, lane: Lane) -> bool {
        let owner = owner_of(&self.words, lane).load(Ordering::SeqCst);
        owner != 0 && owner & REAPS == 0
    }

    /// Clears the lanes of processes that died.
    fn reap(&self) {
        for lane in Lane::ALL.into_iter().filter(|&lane| lane != self.lane) {
            reap(&self.words, lane);
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // who held something held the page, too: the lane is empty
        let word = owner_of(&self.words, self.lane);
        let _ = word.compare_exchange(self.owner, 0, Ordering::SeqCst, Ordering::Relaxed);
    }
}

/// That this generation has the listening socket of an entry; until it is dropped, which is to be
/// before the socket is closed.
#[derive(Debug)]
pub(crate) struct Held {
    page: Arc<Page>,
    entry: usize,
    is_left: bool,
}

impl Held {
    pub(crate) fn new(page: Arc<Page>, entry: usize) -> Self {
        slots::add(page.socket(entry), page.lane);
        Self { page, entry, is_left: false }
    }

    /// Whether another generation that lives has the socket, too.
    pub(crate) fn is_shared(&self) -> bool {
        self.page.reap();
        self.page.others_listen(self.entry)
    }

    /// Leaves the socket, and who is queued, to another generation; `false`: none that lives has
    /// it.
    pub(crate) fn leave(&mut self) -> bool {
        let Self { page, entry, is_left } = self;
        if !*is_left {
            page.reap();
            let is_there = |lane| page.is_there(lane);
            *is_left = slots::leave_to_others(page.socket(*entry), page.lane, is_there);
        }
        *is_left
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_left {
            slots::give_back(self.page.socket(self.entry), self.page.lane);
        }
    }
}

/// Looks after lanes of processes that died, as long as `is_used`. Each listener has one, on its
/// own runtime, so that somebody looks while any of them is served.
pub(crate) async fn watch(page: Weak<Page>, is_used: impl Fn() -> bool) {
    while let Some(page) = page.upgrade().filter(|_| is_used()) {
        page.reap();
        drop::<Arc<_>>(page);
        time::sleep(LOOK).await;
    }
}

fn owner_of(words: &[AtomicU64], lane: Lane) -> &AtomicU64 {
    let place = Lane::ALL.into_iter().position(|it| it == lane).expect("it is one of them");
    &words[AT_LANES + place]
}

/// Clears `lane`, if its owner is dead. Who does so owns it meanwhile, so that nobody else clears
/// what a later owner took; whoever dies of it leaves it to the next.
fn reap(words: &[AtomicU64], lane: Lane) {
    let word = owner_of(words, lane);
    let owner = word.load(Ordering::SeqCst);
    if owner == 0 || Process::unpacked(owner).is_alive() {
        return;
    }
    let Ok(own) = Process::own() else { return };
    let own = own.packed() | REAPS;
    if word.compare_exchange(owner, own, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
        for entry in words[AT_ENTRIES..].chunks_exact(ENTRY) {
            entry[1..].iter().for_each(|word| slots::clear(word, lane));
        }
        let _ = word.compare_exchange(own, 0, Ordering::SeqCst, Ordering::Relaxed);
    }
}

/// A process, so that its number alone, which comes again, is not taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    /// Clock ticks since boot.
    started: u64,
}

/// pid_max is at most 2^22 (PID_MAX_LIMIT, include/linux/threads.h).
const PID_BITS: u32 = 22;
/// The owner only clears the lane.
const REAPS: u64 = 1 << 63;

impl Process {
    fn own() -> io::Result<Self> {
        let pid = process::id();
        let started = start_of(pid)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, started })
    }

    fn packed(self) -> u64 {
        // 41 bits of ticks are 697 years
        (self.started << PID_BITS | u64::from(self.pid)) & !REAPS
    }

    fn unpacked(packed: u64) -> Self {
        let pid = packed & ((1 << PID_BITS) - 1);
        let pid = u32::try_from(pid).expect("22 bits");
        Self { pid, started: (packed & !REAPS) >> PID_BITS }
    }

    fn is_alive(self) -> bool {
        self.is_alive_by(start_of(self.pid), || sys::exists(self.pid))
    }

    /// By what /proc says of its number, and whether there is a process of that number. Where its
    /// start cannot be read, it is taken for alive: nothing is taken from the living.
    fn is_alive_by(self, start: io::Result<Option<u64>>, exists: impl FnOnce() -> bool) -> bool {
        match start {
            Ok(started) => started == Some(self.started),
            // with hidepid=2 (proc(5)), that is said of the living, too, if we may not trace them:
            // a program with file capabilities, another user
            Err(err) if err.kind() == io::ErrorKind::NotFound => exists(),
            Err(_) => true,
        }
    }
}

/// When a process began, in clock ticks since boot; `None`: it ended, and nobody waited for it.
fn start_of(pid: u32) -> io::Result<Option<u64>> {
    // names are bytes, and cut to 15 of them
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&String::from_utf8_lossy(&text)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Field 22 of /proc/PID/stat (proc_pid_stat(5)), and field 3, the state.
fn parse_stat(text: &str) -> Option<Option<u64>> {
    // the name may have anything in it, parentheses, too
    let (_, fields) = text.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((!["Z", "X"].contains(&state)).then_some(started))
}

/// FNV-1a, and never 0.
fn hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
        .max(1)
}

#[cfg(test)]
mod tests {
    use std::{panic, path::Path, thread, time::Instant};

    use tokio::runtime;

    use super::*;
    use crate::{Generation, ShedListener, words::Words};

    // for the model in accounting.rs
    impl Page {
        /// As if its process had been killed.
        pub(crate) fn dies(&self) {
            // no process began as early
            let died = Process { pid: process::id(), started: 1 }.packed();
            owner_of(&self.words, self.lane).store(died, Ordering::SeqCst);
        }

        /// Looks for processes that died.
        pub(crate) fn looks(&self) {
            self.reap();
        }
    }

    #[test]
    fn generations_share_words_and_have_lanes_of_their_own() {
        let (first, memory) = Page::create().unwrap();
        let second = Page::open(&memory).unwrap();
        let third = Page::open(&memory).unwrap();
        assert_eq!([&first, &second, &third].map(Page::lane), Lane::ALL);
        let refused = Page::open(&memory).unwrap_err().to_string();
        assert_eq!(
            refused,
            "3 generations have open connections, expected fewer: one has to drain first"
        );
        let (web, mail) = (first.entry("web").unwrap(), first.entry("mail").unwrap());
        assert_ne!(web, mail);
        assert_eq!(second.entry("web").unwrap(), web);
        assert!(slots::take(first.soft(web), first.lane(), 2));
        assert!(slots::take(second.soft(web), second.lane(), 2));
        assert!(!slots::take(third.soft(web), third.lane(), 2));
        assert_eq!(slots::taken(third.soft(mail)), 0);
        drop(second);
        assert_eq!(Page::open(&memory).unwrap().lane(), Lane::ALL[1]);
    }

    #[test]
    fn the_lane_of_a_dead_process_is_cleared() {
        let (page, memory) = Page::create().unwrap();
        let entry = page.entry("web").unwrap();
        let dead = Lane::ALL[1];
        for started in [1, 2] {
            // no process began as early, and by 2 it clears, and died of it
            let died = Process { pid: process::id(), started }.packed();
            let died = if started == 2 { died | REAPS } else { died };
            owner_of(&page.words, dead).store(died, Ordering::SeqCst);
            for _ in 0..5 {
                assert!(slots::take(page.soft(entry), dead, 10));
                assert!(slots::take(page.hard(entry), dead, 10));
            }
            assert!(slots::take(page.soft(entry), page.lane(), 10));
            page.reap();
            assert_eq!(slots::taken_by(page.soft(entry), dead), 0);
            assert_eq!(slots::taken_by(page.hard(entry), dead), 0);
            assert_eq!(owner_of(&page.words, dead).load(Ordering::SeqCst), 0);
        }
        assert_eq!(slots::taken(page.soft(entry)), 2);
        let other = Page::open(&memory).unwrap();
        assert_eq!(other.lane(), dead);
        page.reap();
        assert_ne!(owner_of(&page.words, dead).load(Ordering::SeqCst), 0, "it lives");
    }

    #[test]
    fn the_socket_is_left_to_who_has_it_and_lives() {
        let (first, memory) = Page::create().unwrap();
        let entry = first.entry("web").unwrap();
        first.borrows(entry);
        let others = [(); 2].map(|()| Arc::new(Page::open(&memory).unwrap()));
        let first = Arc::new(first);
        let hold = |page: &Arc<Page>| Held::new(Arc::clone(page), entry);
        let mut held = hold(&first);
        assert!(!held.leave(), "they have lanes, and no socket");
        let [second, third] = &others;
        drop(hold(second));
        let dead = hold(third);
        third.dies();
        assert!(first.others_listen(entry), "nobody looked");
        assert!(!held.leave(), "one closed it, one died");
        assert!(!first.others_listen(entry));
        std::mem::forget(dead);
        let mut other = hold(second);
        // once, however often it is said
        assert!(held.leave() && held.leave());
        assert!(!other.leave(), "it is the last one");
        drop((held, other));
        assert_eq!(slots::taken(first.socket(entry)), 0);
        assert!(second.is_borrowed(entry), "that is for ever");
    }

    #[tokio::test]
    async fn a_listener_has_the_socket_from_its_build_to_its_close() {
        let mut generation = Generation::take().unwrap();
        let builder = ShedListener::bind("127.0.0.1:0").name("web");
        let mut listening = builder.build_in(&mut generation).unwrap().into_listening();
        let (words, _) = generation.words("web", false).unwrap();
        let Words::Page { page, entry } = words else { panic!("they are shared") };
        assert_eq!(slots::taken_by(page.socket(entry), page.lane), 1);
        listening.close();
        assert_eq!(slots::taken(page.socket(entry)), 0);
    }

    #[test]
    fn who_is_cleared_is_left_nothing() {
        let (page, _memory) = Page::create().unwrap();
        let (entry, page) = (page.entry("web").unwrap(), Arc::new(page));
        let cleared = Lane::ALL[1];
        slots::add(page.socket(entry), cleared);
        let lives = Process::own().unwrap().packed();
        owner_of(&page.words, cleared).store(lives | REAPS, Ordering::SeqCst);
        let mut held = Held::new(Arc::clone(&page), entry);
        assert!(!held.leave(), "somebody is at it");
        owner_of(&page.words, cleared).store(lives, Ordering::SeqCst);
        assert!(held.leave());
    }

    #[test]
    fn the_dead_are_seen_while_any_listener_is_served() {
        let runtime = || {
            let mut builder = runtime::Builder::new_multi_thread();
            builder.worker_threads(1).enable_all().build().unwrap()
        };
        let (first, second) = (runtime(), runtime());
        let mut generation = Generation::take().unwrap();
        let mut build = |runtime: &runtime::Runtime, name| {
            let _entered = runtime.enter();
            ShedListener::bind("127.0.0.1:0").name(name).build_in(&mut generation).unwrap()
        };
        let (web, _mail) = (build(&first, "web"), build(&second, "mail"));
        drop((web, first));
        let (words, _) = generation.words("other", false).unwrap();
        let Words::Page { page, .. } = words else { panic!("they are shared") };
        let dead = owner_of(&page.words, Lane::ALL[1]);
        dead.store(Process { pid: process::id(), started: 1 }.packed(), Ordering::SeqCst);
        let end = Instant::now() + 20 * LOOK;
        while dead.load(Ordering::SeqCst) != 0 {
            assert!(Instant::now() < end, "nobody looks");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn another_layout_is_refused() {
        let (page, memory) = Page::create().unwrap();
        page.words[AT_LAYOUT].store(7, Ordering::SeqCst);
        let message = Page::open(&memory).unwrap_err().to_string();
        assert_eq!(
            message,
            "the limits of the generation before have layout 7, expected 2: the same version of \
             backlogd-shed"
        );
    }

    #[test]
    fn reads_state_and_start_whatever_the_name_is() {
        let rest = "1 1 1 0 -1 4194304 100 0 0 0 1 2 0 0 20 0 1 0 777 1000 1";
        for name in ["nginx", "a b", ") Z 1", "("] {
            assert_eq!(parse_stat(&format!("5 ({name}) S {rest}")), Some(Some(777)), "{name}");
            assert_eq!(parse_stat(&format!("5 ({name}) Z {rest}")), Some(None), "{name}");
        }
        assert_eq!(parse_stat("5 (a"), None);
        assert_eq!(parse_stat("5 (a) S 1 2"), None);
    }

    #[test]
    fn a_name_may_be_cut_within_a_character() {
        // the kernel has the first 15 bytes
        let thread = thread::Builder::new().name("é".repeat(10)).spawn(|| {
            let id = fs::read_link("/proc/thread-self").unwrap();
            let comm = fs::read(Path::new("/proc").join(&id).join("comm")).unwrap();
            assert!(String::from_utf8(comm).is_err(), "the name is whole");
            start_of(id.file_name().unwrap().to_str().unwrap().parse().unwrap())
        });
        let started = thread.unwrap().join().unwrap().unwrap();
        assert!(started.is_some(), "it runs");
    }

    #[test]
    fn what_proc_hides_is_alive_as_long_as_it_exists() {
        let process = Process { pid: 7, started: 100 };
        let check = |start: io::Result<Option<u64>>, exists, expected| {
            let case = format!("{start:?}, {exists}");
            assert_eq!(process.is_alive_by(start, || exists), expected, "{case}");
        };
        let error = |errno| io::Error::from_raw_os_error(errno);
        check(Err(error(libc::ENOENT)), true, true);
        check(Err(error(libc::ENOENT)), false, false);
        for exists in [false, true] {
            check(Ok(Some(100)), exists, true);
            // the number came again, or nobody waited for it
            check(Ok(Some(101)), exists, false);
            check(Ok(None), exists, false);
            for errno in [libc::EPERM, libc::EACCES, libc::EMFILE] {
                check(Err(error(errno)), exists, true);
            }
        }
    }

    #[test]
    fn a_process_exists_from_its_start_until_somebody_waited_for_it() {
        let mut child = process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(sys::exists(child.id()) && sys::exists(process::id()));
        // of another user, if we are not root
        assert!(sys::exists(1));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!sys::exists(child.id()));
    }

    #[test]
    fn a_lane_that_was_cleared_takes_nothing_from_others() {
        let (page, _memory) = Page::create().unwrap();
        let word = page.soft(page.entry("web").unwrap());
        for lane in [Lane(0), Lane(1), Lane(2)] {
            assert!(slots::take(word, lane, 10));
        }
        slots::clear(word, Lane(0));
        let gives = panic::catch_unwind(|| slots::give_back(word, Lane(0)));
        assert_eq!(gives.is_err(), cfg!(debug_assertions), "it is a mistake");
        assert!(slots::leave_to_others(word, Lane(0), |_| true));
        assert_eq!(Lane::ALL.map(|lane| slots::taken_by(word, lane)), [0, 1, 1]);
    }

    #[test]
    fn a_process_fits_into_a_word() {
        let process = Process { pid: (1 << 22) - 1, started: (1 << 41) - 1 };
        assert_eq!(Process::unpacked(process.packed()), process);
        assert_eq!(Process::unpacked(process.packed() | REAPS), process);
        assert!(Process::own().unwrap().is_alive());
        assert!(!Process { pid: process::id(), started: 0 }.is_alive());
    }
}
