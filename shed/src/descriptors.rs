//! How the listeners of a process share its descriptors.
//!
//! RLIMIT_NOFILE is one for the whole process, so what one listener may open is what it leaves to
//! the others. Each claims as many descriptors as its hard limit allows, or as are open where those
//! are more, since lower limits end nobody. A listener that asks for what is not left is refused.
//! One whose hard limit is derived gets at least what its soft limit needs and, as far as that is
//! there, the rest; who came first, first. One that is closed claims what is open still.
//!
//! Whenever a listener comes, changes or goes, and each [`PERIOD`], RLIMIT_NOFILE is read and
//! shared out again. Where it was lowered to less than all of them need, each has its part of that,
//! and soft limits follow. What the program opens besides is for the reserve.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    gate::Gate,
    handle::SetError,
    limits::{Asked, Bounds, LimitError, Limits, Reserve, Room},
    sys,
};

#[cfg(test)]
mod tests;

/// So often is looked whether RLIMIT_NOFILE is another one.
pub(crate) const PERIOD: Duration = Duration::from_secs(10);

/// The listeners of this process: the one static of the crate that changes, since RLIMIT_NOFILE is
/// one for all that the process has, too.
static PROCESS: Descriptors = Descriptors::new();

/// Reads RLIMIT_NOFILE, and shares it out again where that is another one.
pub(crate) fn look() {
    PROCESS.change(|_| {});
}

impl Bounds {
    /// What the listeners of a process that may have `nofile` descriptors would have in force, if
    /// it had these and no others, opened in this order.
    ///
    /// # Errors
    /// The place of the first one that could not be, and why.
    pub fn together(limits: &[Limits], nofile: usize) -> Result<Vec<Self>, (usize, LimitError)> {
        let mut account = Account { entries: Vec::new(), next: 0 };
        for (place, limits) in limits.iter().enumerate() {
            account.add(*limits, nofile).map_err(|err| (place, err))?;
            account.share_out(nofile);
        }
        Ok(account.entries.iter().map(|entry| entry.bounds).collect())
    }
}

/// What listeners claim of one RLIMIT_NOFILE.
#[derive(Debug)]
struct Descriptors(Mutex<Account>);

impl Descriptors {
    const fn new() -> Self {
        Self(Mutex::new(Account { entries: Vec::new(), next: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the account by `change`, and puts in force what comes of it.
    fn change(&self, change: impl FnOnce(&mut Account)) {
        let mut account = self.lock();
        change(&mut account);
        // it cannot fail; if it does, limits stay as they are until it does not
        if let Ok(nofile) = sys::nofile() {
            account.share_out(nofile);
        }
    }

    /// Changes it, if `change` finds that it can be, where RLIMIT_NOFILE is what it gets.
    fn try_change<T>(
        &self,
        change: impl FnOnce(&mut Account, usize) -> Result<T, LimitError>,
    ) -> Result<T, SetError> {
        let mut account = self.lock();
        // under the lock, so that nobody goes by an older one afterwards
        let nofile = sys::nofile().map_err(SetError::Nofile)?;
        let result = change(&mut account, nofile).map_err(SetError::Limits)?;
        account.share_out(nofile);
        Ok(result)
    }
}

/// What one listener claims, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    of: &'static Descriptors,
    id: u64,
}

impl Claim {
    /// Claims what a listener of this process with `limits` may open.
    ///
    /// # Errors
    /// They cannot hold, beside the listeners that there are.
    pub(crate) fn new(limits: Limits) -> Result<Self, SetError> {
        Self::of(&PROCESS, limits)
    }

    /// A claim that has nothing to do with those of other tests.
    #[cfg(test)]
    pub(crate) fn alone(limits: Limits) -> Self {
        Self::of(Box::leak(Box::new(Descriptors::new())), limits).expect("they hold")
    }

    fn of(of: &'static Descriptors, limits: Limits) -> Result<Self, SetError> {
        let id = of.try_change(|account, nofile| account.add(limits, nofile))?;
        Ok(Self { of, id })
    }

    /// Has `gate` follow what is in force, and tell what is open.
    pub(crate) fn open(&self, gate: &Arc<Gate>) {
        let mut account = self.of.lock();
        let entry = account.entry(self.id);
        gate.set(&entry.bounds);
        entry.gate = Some(Arc::clone(gate));
    }

    /// Puts other limits in force.
    ///
    /// # Errors
    /// They cannot hold, beside the other listeners; the ones before stay in force.
    pub(crate) fn set(&self, limits: Limits) -> Result<Bounds, SetError> {
        self.of.try_change(|account, nofile| account.change(self.id, limits, nofile))?;
        Ok(self.bounds())
    }

    /// No more are opened.
    pub(crate) fn close(&self) {
        self.of.change(|account| account.entry(self.id).is_closed = true);
    }

    /// The limits that were given last.
    pub(crate) fn limits(&self) -> Limits {
        self.of.lock().entry(self.id).limits
    }

    /// What is in force of them.
    pub(crate) fn bounds(&self) -> Bounds {
        self.of.lock().entry(self.id).bounds
    }

    /// Descriptors that all listeners of the process may take together.
    pub(crate) fn of_all(&self) -> usize {
        self.of.lock().others(None)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.of.change(|account| account.entries.retain(|entry| entry.id != self.id));
    }
}

/// Listeners, who came first first.
#[derive(Debug)]
struct Account {
    entries: Vec<Entry>,
    /// The id of the next one.
    next: u64,
}

/// One listener.
#[derive(Debug)]
struct Entry {
    id: u64,
    limits: Limits,
    asked: Asked,
    /// What is in force.
    bounds: Bounds,
    /// Where that is in force, and what is open is counted; `None`: it is not open so far.
    gate: Option<Arc<Gate>>,
    is_closed: bool,
}

impl Entry {
    /// Connections of this process that are open.
    fn taken(&self) -> usize {
        self.gate.as_ref().map_or(0, |gate| gate.own_taken())
    }

    /// Descriptors that it may take.
    fn claims(&self) -> usize {
        let most = if self.is_closed { 0 } else { self.bounds.hard() };
        most.max(self.taken()).saturating_mul(self.asked.fds)
    }

    fn put_in_force(&mut self, bounds: Bounds) {
        if self.bounds != bounds {
            self.bounds = bounds;
            if let Some(gate) = &self.gate {
                gate.set(&bounds);
            }
        }
    }
}

impl Account {
    /// One more, and its id.
    fn add(&mut self, limits: Limits, nofile: usize) -> Result<u64, LimitError> {
        let (asked, bounds) = self.judge(None, limits, nofile)?;
        let id = self.next;
        self.next += 1;
        let entry = Entry { id, limits, asked, bounds, gate: None, is_closed: false };
        self.entries.push(entry);
        Ok(id)
    }

    /// Other limits for one.
    fn change(&mut self, id: u64, limits: Limits, nofile: usize) -> Result<(), LimitError> {
        let (asked, bounds) = self.judge(Some(id), limits, nofile)?;
        let entry = self.entry(id);
        (entry.limits, entry.asked) = (limits, asked);
        entry.put_in_force(bounds);
        Ok(())
    }

    /// What would be in force of `limits`, for the listener `id` or one that is to come.
    fn judge(
        &self,
        id: Option<u64>,
        limits: Limits,
        nofile: usize,
    ) -> Result<(Asked, Bounds), LimitError> {
        let asked = Asked::new(limits)?;
        let reserve = Reserve::of(limits.fd_reserve).and(self.reserve(id));
        let bounds = Bounds::within(asked, Room { nofile, reserve, others: self.others(id) })?;
        Ok((asked, bounds))
    }

    fn entry(&mut self, id: u64) -> &mut Entry {
        let entry = self.entries.iter_mut().find(|entry| entry.id == id);
        entry.expect("it is there as long as its claim")
    }

    /// What all but `id` reserve.
    fn reserve(&self, id: Option<u64>) -> Reserve {
        let open = self.entries.iter().filter(|entry| Some(entry.id) != id && !entry.is_closed);
        open.fold(Reserve::default(), |sum, it| sum.and(Reserve::of(it.limits.fd_reserve)))
    }

    /// Descriptors that all but `id` may take.
    fn others(&self, id: Option<u64>) -> usize {
        let others = self.entries.iter().filter(|entry| Some(entry.id) != id);
        others.map(Entry::claims).fold(0, usize::saturating_add)
    }

    /// Puts in force for each what there is room for.
    fn share_out(&mut self, nofile: usize) {
        let closed = self.entries.iter().filter(|entry| entry.is_closed);
        let others = closed.map(Entry::claims).fold(0, usize::saturating_add);
        let left = Room { nofile, reserve: self.reserve(None), others }.left();
        let mut open: Vec<_> = self.entries.iter_mut().filter(|it| !it.is_closed).collect();
        let shares: Vec<_> = open.iter().map(|entry| (entry.asked, entry.taken())).collect();
        for (entry, most) in open.iter_mut().zip(share(&shares, left)) {
            entry.put_in_force(entry.asked.at_most(most));
        }
    }
}

/// How many connections each may have at most, who asks so much and has so many open, of `left`
/// descriptors.
fn share(listeners: &[(Asked, usize)], left: usize) -> Vec<usize> {
    let sum = |of: fn(&(Asked, usize)) -> usize| {
        let all = listeners.iter().map(|it| of(it).saturating_mul(it.0.fds));
        all.fold(0, usize::saturating_add)
    };
    let least = sum(|(asked, _)| asked.least);
    if left < least {
        let part = |(asked, _): &(Asked, usize)| {
            // neither is more than a usize, so that the product is none of more than a u128
            let part = left as u128 * asked.least as u128 / least as u128;
            usize::try_from(part).expect("at most what it asks")
        };
        return listeners.iter().map(part).collect();
    }
    let Some(mut rest) = left.checked_sub(sum(|(asked, taken)| asked.least.max(*taken))) else {
        // more are open than may be: what is above the least has to end first
        return listeners.iter().map(|(asked, _)| asked.least).collect();
    };
    let with_rest = |(asked, taken): &(Asked, usize)| {
        let base = asked.least.max(*taken);
        let most = asked.full.min(base + rest / asked.fds);
        rest -= most.saturating_sub(base) * asked.fds;
        most
    };
    listeners.iter().map(with_rest).collect()
}
