//! Tells receivers of alerts: Alertmanagers, and webhooks.
//!
//! In: [`Verdicts`], from a watch channel. Out: POSTs. Each receiver has a task of its own (`courier.rs`)
//! with a queue of the newest state of each alert (`queue.rs`, pure), so one that hangs hinders nobody.
//! What fires is sent again and again, with an end in the near future: when the agent dies, it is over
//! by itself at the receiver.

mod account;
mod client;
mod courier;
mod payload;
mod queue;

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

pub use self::account::{Deliveries, Delivery};
use self::{client::Client, courier::Courier, payload::Style, queue::Queue};
use crate::{detect::alert::Verdicts, outlet::Outlet};

/// How long receivers may take for what they do not know when the agent stops, or tells them no more.
const GRACE: Duration = Duration::from_secs(2);

/// All receivers.
pub struct Outlets {
    instance: String,
    verdicts: watch::Receiver<Arc<Verdicts>>,
    deliveries: Deliveries,
    running: Vec<Running>,
    /// Of former configurations: they send what their receivers do not know, within [`GRACE`].
    leaving: Vec<Running>,
}

struct Running {
    outlet: Outlet,
    /// Dropping it tells the task to stop.
    stop: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    /// Lets its task end, [`GRACE`] from here at the latest.
    fn stop(&mut self) {
        self.stop = watch::channel(()).0;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Outlets {
    /// Starts a task for each of `outlets`; `instance` is this host's name. To be called within a tokio
    /// runtime.
    #[must_use]
    pub fn start(
        outlets: &[Outlet],
        instance: String,
        verdicts: watch::Receiver<Arc<Verdicts>>,
        deliveries: Deliveries,
    ) -> Self {
        let mut all =
            Self { instance, verdicts, deliveries, running: Vec::new(), leaving: Vec::new() };
        all.configure(outlets);
        all
    }

    /// Goes on with `outlets`; those that are the same as before do not notice. The others send what their
    /// receivers do not know, meanwhile.
    pub fn configure(&mut self, outlets: &[Outlet]) {
        let mut before = std::mem::take(&mut self.running);
        for outlet in outlets {
            let same = before.iter().position(|running| running.outlet == *outlet);
            let running = match same {
                Some(at) => before.swap_remove(at),
                None => self.begin(outlet.clone()),
            };
            self.running.push(running);
        }
        self.leaving.retain(|running| !running.task.is_finished());
        before.iter_mut().for_each(Running::stop);
        self.leaving.append(&mut before);
    }

    fn begin(&self, outlet: Outlet) -> Running {
        let (stop, stopped) = watch::channel(());
        let resend = outlet.resend.into();
        let courier = Courier {
            style: Style {
                form: outlet.form,
                instance: self.instance.clone(),
                labels: outlet.labels.clone(),
                resend,
            },
            client: Client::new(outlet.clone()),
            queue: Queue::new(outlet.form, resend, RandomState::new().hash_one(&self.instance)),
            account: self.deliveries.open(&outlet.url.authority()),
            verdicts: self.verdicts.clone(),
            stop: stopped,
            began: Instant::now(),
            refused: None,
            is_failing: false,
        };
        Running { outlet, stop, task: tokio::spawn(courier.run(GRACE)) }
    }

    /// Sends what receivers do not know, if they take it at once. What fires is not said to be over.
    pub async fn stop(mut self) {
        let end = Instant::now() + GRACE;
        self.running.iter_mut().for_each(Running::stop);
        for running in self.leaving.iter_mut().chain(&mut self.running) {
            // the others go on meanwhile; what is not done then is cut off
            let _ = timeout_at(end, &mut running.task).await;
        }
    }
}

#[cfg(test)]
mod tests;
