//! Servers that are simulated event by event: what they do is known, so what is ideal is, too.

use std::{cmp::Reverse, collections::BinaryHeap, collections::VecDeque};

use super::{gradient::WARM_UP, *};

/// Numbers that look random, the same ones each time (splitmix64).
struct Random(u64);

impl Random {
    /// Above 0, below 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.0;
        it = (it ^ it >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ it >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (f64::from(u32::try_from((it ^ it >> 31) >> 32).expect("32 bits")) + 0.5) / 4_294_967_296.0
    }

    /// The time to the next of events that come `mean` apart.
    fn exponential(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-self.next().ln())
    }
}

/// For so many seconds, a server has so many workers and so many clients come a second.
#[derive(Clone, Copy)]
struct Phase {
    seconds: u32,
    workers: usize,
    clients: u32,
}

/// What a second was like.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    limit: usize,
    came: u32,
    /// Requests that ended within [`IN_TIME`].
    good: u32,
}

const SERVICE: Duration = Duration::from_millis(100);
const IN_TIME: Duration = Duration::from_millis(500);

/// A server with workers that take a request each, in order, and a limit of requests inside. Each
/// takes [`SERVICE`], and up to `noise` of it more or less.
struct Server {
    limit: usize,
    workers: usize,
    noise: f64,
    random: Random,
    busy: BinaryHeap<Reverse<(Duration, Duration)>>,
    waiting: VecDeque<Duration>,
    n: u64,
    sum: u64,
}

impl Server {
    fn inside(&self) -> usize {
        self.busy.len() + self.waiting.len()
    }

    fn start(&mut self, now: Duration) {
        while self.busy.len() < self.workers
            && let Some(came) = self.waiting.pop_front()
        {
            let took = SERVICE.mul_f64(1.0 + self.noise * (2.0 * self.random.next() - 1.0));
            self.busy.push(Reverse((now + took, came)));
        }
    }

    /// Ends what ends until `now`; gives how many did in time.
    fn until(&mut self, now: Duration) -> u32 {
        let mut good = 0;
        while let Some(&Reverse((ends, came))) = self.busy.peek()
            && ends <= now
        {
            self.busy.pop();
            self.n += 1;
            self.sum += nanos(ends - came);
            good += u32::from(ends - came <= IN_TIME);
            self.start(ends);
        }
        good
    }
}

/// Plays `phases`, with a limit that follows or with `soft` all the time; tells each second.
fn play(phases: &[Phase], soft: usize, noise: f64, follows: bool, samples: bool) -> Vec<Second> {
    let mut gradient = Gradient::new(soft);
    let mut server = Server {
        limit: soft,
        workers: 0,
        noise,
        random: Random(1),
        busy: BinaryHeap::new(),
        waiting: VecDeque::new(),
        n: 0,
        sum: 0,
    };
    let (mut seconds, mut now, mut end) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    for phase in phases {
        server.workers = phase.workers;
        for _ in 0..phase.seconds {
            let mut second = Second { limit: server.limit, ..Second::default() };
            end += Duration::from_secs(1);
            while now < end {
                second.good += server.until(now);
                second.came += 1;
                if server.inside() < server.limit {
                    server.waiting.push_back(now);
                    server.start(now);
                }
                now += server.random.exponential(Duration::from_secs(1) / phase.clients);
            }
            let n = if samples { server.n } else { 0 };
            let lasted = Duration::from_secs(1);
            let window = Window { n, sum: server.sum, in_use: server.inside(), lasted };
            (server.n, server.sum) = (0, 0);
            if follows {
                server.limit = gradient.next(&window, None, soft);
            }
            seconds.push(second);
        }
    }
    seconds
}

/// 200 workers do 2,000 a second, then 50 do 500, then 200 again, while 1,800 come each second.
const STEPS: [Phase; 3] = [
    Phase { seconds: 60, workers: 200, clients: 1_800 },
    Phase { seconds: 120, workers: 50, clients: 1_800 },
    Phase { seconds: 180, workers: 200, clients: 1_800 },
];

/// Of what was possible, how much was done in time, in percent.
fn goodput(seconds: &[Second], workers: u32) -> u32 {
    let good: u32 = seconds.iter().map(|it| it.good).sum();
    let ideal: u32 = seconds.iter().map(|it| it.came.min(workers * 10)).sum();
    good * 100 / ideal
}

/// Least and greatest limit.
fn range(seconds: &[Second]) -> (usize, usize) {
    let limits = || seconds.iter().map(|it| it.limit);
    (limits().min().expect("some"), limits().max().expect("some"))
}

#[test]
fn follows_a_server_that_loses_workers_and_gets_them_back() {
    for noise in [0.0, 0.2, 0.9] {
        let seconds = play(&STEPS, 1_000, noise, true, true);
        let fixed = play(&STEPS, 1_000, noise, false, true);
        assert!(seconds.iter().all(|it| (100..=1_000).contains(&it.limit)), "noise {noise}");

        // as long as it keeps up, it sheds nobody
        assert!(99 <= goodput(&seconds[5..60], 200), "noise {noise}: {seconds:?}");
        // 30 s after the step all that is served is in time; with the fixed limit nothing is
        let (settled, without) = (&seconds[90..180], &fixed[90..180]);
        assert!(95 <= goodput(settled, 50), "noise {noise}: {}", goodput(settled, 50));
        assert_eq!(goodput(without, 50), 0, "noise {noise}");
        // and it stays where it is
        let (least, most) = range(settled);
        assert!(most * 100 <= least * 125, "noise {noise}: {least} to {most}");
        // back in full within 60 s
        let recovered = &seconds[240..];
        assert!(95 <= goodput(recovered, 200), "noise {noise}: {}", goodput(recovered, 200));
    }
}

#[test]
fn changes_no_faster_than_it_may() {
    for noise in [0.0, 0.9] {
        for pair in play(&STEPS, 1_000, noise, true, true).windows(2) {
            let (before, after) = (pair[0].limit * 1_000, pair[1].limit * 1_000);
            assert!(before * 90 / 100 <= after + 1_000, "{pair:?}");
            assert!(after <= before * 102 / 100 + 1_000, "{pair:?}");
        }
    }
}

#[test]
fn short_windows_change_it_as_little_a_second() {
    let seen = |millis: u64, lasted| Window {
        n: 100,
        sum: 100 * millis * 1_000_000,
        in_use: 1_000,
        lasted: Duration::from_millis(lasted),
    };
    for (lasted, fallen, risen) in [(100, 990, 991), (500, 950, 956), (60_000, 906, 912)] {
        let mut gradient = Gradient::new(1_000);
        for _ in 0..WARM_UP {
            gradient.next(&seen(10, 100), None, 1_000);
        }
        assert_eq!(gradient.next(&seen(1_000, lasted), None, 1_000), fallen, "{lasted} ms");
        assert_eq!(gradient.next(&seen(10, lasted), None, 1_000), risen, "{lasted} ms");
    }
}

#[test]
fn noise_alone_lowers_nothing() {
    let seconds =
        play(&[Phase { seconds: 120, workers: 200, clients: 1_600 }], 1_000, 0.9, true, true);
    assert_eq!(range(&seconds), (1_000, 1_000));
}

#[test]
fn without_samples_the_limit_is_the_one_that_was_given() {
    assert_eq!(range(&play(&STEPS, 1_000, 0.2, true, false)), (1_000, 1_000));

    // as it is for samples that end, however low it was
    let mut gradient = Gradient::new(1_000);
    let seen = |n, millis: u64| Window {
        n,
        sum: n * millis * 1_000_000,
        in_use: 1_000,
        lasted: Duration::from_secs(1),
    };
    for _ in 0..WARM_UP {
        assert_eq!(gradient.next(&seen(100, 10), None, 1_000), 1_000);
    }
    for _ in 0..10 {
        gradient.next(&seen(100, 100), None, 1_000);
    }
    let low = gradient.next(&seen(100, 100), None, 1_000);
    assert!(low < 500, "{low}");
    for n in [49, 0, 0, 49, 0, 0, 0, 0, 0, 0, 0, 0, 0] {
        assert_eq!(gradient.next(&seen(n, 100), None, 1_000), low, "few samples change nothing");
    }
    assert_eq!(gradient.next(&seen(0, 0), None, 1_000), 1_000);
}

#[test]
fn stays_between_floor_and_soft() {
    let slow = |in_use| Window { n: 100, sum: 100_000_000_000, in_use, lasted: SERVICE * 50 };
    let fast = Window { n: 100, sum: 100, in_use: 9, lasted: SERVICE };
    for (floor, soft, expected) in
        [(None, 10_000, 1_000), (None, 100, 64), (None, 10, 10), (Some(7), 100, 7)]
    {
        let mut gradient = Gradient::new(soft);
        (0..WARM_UP).for_each(|_| {
            gradient.next(&fast, floor, soft);
        });
        let least = (0..100).map(|_| gradient.next(&slow(soft), floor, soft)).min();
        assert_eq!(least, Some(expected), "{floor:?} of {soft}");
    }
    // and follows one that is set meanwhile
    let mut gradient = Gradient::new(1_000);
    assert_eq!(gradient.next(&fast, None, 300), 300);
    assert_eq!(gradient.next(&fast, None, 2_000), 2_000);
}

#[test]
fn what_cannot_hold_is_named() {
    let check = |adaptive: Adaptive, expected: &str| {
        assert_eq!(adaptive.check(100).expect_err("refused").to_string(), expected);
    };
    let milli = Duration::from_millis;
    assert_eq!(Adaptive::codel().check(1), Ok(()));
    assert_eq!(Adaptive::gradient().check(1), Ok(()));
    check(
        Adaptive::Codel { target: Duration::ZERO, interval: milli(100) },
        "adaptive: target is 0ns, expected 1ms to 1s",
    );
    check(
        Adaptive::Codel { target: milli(200), interval: milli(100) },
        "adaptive: interval is 100ms, expected 200ms to 10s",
    );
    check(
        Adaptive::Gradient { floor: Some(101), window: milli(1_000) },
        "adaptive: floor is 101, expected 1 to the soft limit of 100",
    );
}

/// An accept loop that takes 1 ms for each connection, while `clients` come a second for `seconds`;
/// tells the waits of those that were served in each second, and how many were shed.
fn queue(seconds: u32, clients: impl Fn(u32) -> u32) -> Vec<(Vec<Duration>, u32)> {
    let Adaptive::Codel { target, interval } = Adaptive::codel() else { panic!("it is CoDel") };
    let (mut codel, mut random) = (Codel::new(target, interval), Random(1));
    let (mut free, mut came) = (Duration::ZERO, Duration::ZERO);
    let mut told = Vec::new();
    for second in 1..=seconds {
        let (mut waits, mut shed) = (Vec::new(), 0);
        while came < Duration::from_secs(second.into()) {
            if free < came {
                codel.emptied();
            }
            let now = free.max(came);
            if codel.sheds(now - came, now) {
                shed += 1;
                free = now + Duration::from_micros(20);
            } else {
                waits.push(now - came);
                free = now + Duration::from_millis(1);
            }
            came += random.exponential(Duration::from_secs(1) / clients(second));
        }
        told.push((waits, shed));
    }
    told
}

fn median(waits: &[Duration]) -> Duration {
    let mut waits = waits.to_vec();
    waits.sort_unstable();
    waits[waits.len() / 2]
}

#[test]
fn codel_sheds_once_waits_were_long_for_an_interval_and_then_more_often() {
    let milli = Duration::from_millis;
    let mut codel = Codel::new(milli(20), milli(100));
    let mut check = |now: std::ops::Range<u64>, waited, expected: &[u64]| {
        let sheds: Vec<_> = now.filter(|&now| codel.sheds(milli(waited), milli(now))).collect();
        assert_eq!(sheds, expected, "waits of {waited} ms");
    };
    check(0..100, 20, &[]);
    check(100..101, 19, &[]); // one short wait is enough
    check(101..200, 20, &[]);
    check(200..450, 20, &[201, 301, 372, 430]); // 100 ms / √1, √2, √3
    check(450..451, 19, &[]);
    // soon after, it begins nearly where it was
    check(451..700, 20, &[551, 622, 680]);
    check(700..701, 0, &[]);
    check(9_000..9_250, 20, &[9_100, 9_200]);
}

#[test]
fn codel_lets_bursts_pass() {
    assert!(queue(20, |_| 800).iter().all(|(_, shed)| *shed == 0));
}

#[test]
fn codel_sheds_until_waits_are_short_and_ends_with_the_overload() {
    let told = queue(60, |second| if (11..=40).contains(&second) { 1_300 } else { 800 });
    // after ten seconds of overload, and as long as it lasts
    let overloaded = &told[20..40];
    for (waits, _) in overloaded {
        assert!(median(waits) < Duration::from_millis(250), "{:?}", median(waits));
    }
    let served: usize = overloaded.iter().map(|(waits, _)| waits.len()).sum();
    assert!(20 * 950 <= served, "{served} of {}", 20 * 1_000);
    // afterwards
    assert!(told[45..].iter().all(|(_, shed)| *shed == 0), "it ends");
}
