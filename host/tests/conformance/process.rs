//! A store in a process of its own, so that SIGKILL and SIGSTOP are the real thing. Operations go in and events come
//! out as lines of text; instants are those of the machine's clock, which all its processes share.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use turnstile_core::{ClaimId, Epoch, Instant, LockKey};
use turnstile_host::store::{Event, Operation, Store, StoreError};

/// Before every event, since the test runner of the child prints lines of its own.
const MARK: &str = "@event ";

/// The child, as its parent sees it.
pub struct Process {
    child: Child,
    input: Input,
}

/// Where its operations go in.
#[derive(Clone)]
pub struct Input(Arc<Mutex<ChildStdin>>);

impl Input {
    pub fn submit(&self, operation: &Operation) {
        let line = match operation {
            Operation::Claim { key, claim, lock_delay, new_epoch } => {
                format!("claim {key} {} {} {new_epoch}", claim.0, lock_delay.as_micros())
            }
            Operation::Yield { key } => format!("yield {key}"),
            Operation::EndLease => "end".to_owned(),
        };
        // One that was killed does not read any more.
        let _ = writeln!(self.0.lock().unwrap(), "{line}");
    }
}

impl Process {
    pub fn spawn(mut command: Command) -> (Self, UnboundedReceiver<Event>) {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the child process starts");
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, events) = unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // The runner leaves its own text in front of the first event.
                if let Some(at) = line.find(MARK)
                    && sender.send(read_event(&line[at + MARK.len()..])).is_err()
                {
                    return;
                }
            }
        });
        (Self { child, input: Input(Arc::new(Mutex::new(stdin))) }, events)
    }

    pub fn input(&self) -> Input {
        self.input.clone()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn freeze(&mut self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
        // The signal takes effect a little later.
        let (_, status) = waitpid(Some(self.pid()), WaitOptions::UNTRACED).unwrap().expect("a child process");
        assert!(status.stopped(), "the child process ended: {status:?}");
    }

    pub fn thaw(&mut self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Also ends one that is stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child itself: carries out what comes in until its parent is gone.
pub fn serve(store: &dyn Store, mut events: UnboundedReceiver<Event>) {
    std::thread::spawn(move || {
        while let Some(event) = events.blocking_recv() {
            // One write per line, so that nothing comes between.
            let line = format!("{MARK}{}\n", write_event(&event));
            if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
                return;
            }
            let _ = std::io::stdout().flush();
        }
    });
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        store.submit(read_operation(&line));
    }
}

fn read_operation(line: &str) -> Operation {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["claim", key, claim, lock_delay, new_epoch] => Operation::Claim {
            key: read_key(key),
            claim: ClaimId(claim.parse().unwrap()),
            lock_delay: Duration::from_micros(lock_delay.parse().unwrap()),
            new_epoch: new_epoch.parse().unwrap(),
        },
        ["yield", key] => Operation::Yield { key: read_key(key) },
        ["end"] => Operation::EndLease,
        _ => panic!("not an operation: {line}"),
    }
}

fn write_event(event: &Event) -> String {
    match event {
        Event::LeaseRenewed { until } => format!("renewed {}", until.as_micros()),
        Event::LeaseLost => "lease-lost".to_owned(),
        Event::LeaseEnded => "lease-ended".to_owned(),
        Event::Gained { key, claim, epoch, lock_delay, quarantined_until } => {
            let (lock_delay, until) = (lock_delay.as_micros(), quarantined_until.as_micros());
            format!("gained {key} {} {} {lock_delay} {until}", claim.0, epoch.0)
        }
        Event::Queued { key, claim } => format!("queued {key} {}", claim.0),
        Event::Contended { key } => format!("contended {key}"),
        Event::Lost { key } => format!("lost {key}"),
        Event::Failed { key, claim, error } => {
            let (kind, reason) = match error {
                StoreError::Unavailable(reason) => ("unavailable", reason),
                StoreError::Ambiguous(reason) => ("ambiguous", reason),
                StoreError::Rejected(reason) => ("rejected", reason),
            };
            format!("failed {key} {} {kind} {}", claim.0, reason.replace(['\n', ' '], "_"))
        }
    }
}

fn read_event(line: &str) -> Event {
    let number = |text: &str| text.parse::<u64>().unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["renewed", until] => Event::LeaseRenewed { until: Instant::from_micros(number(until)) },
        ["lease-lost"] => Event::LeaseLost,
        ["lease-ended"] => Event::LeaseEnded,
        ["gained", key, claim, epoch, lock_delay, until] => Event::Gained {
            key: read_key(key),
            claim: ClaimId(number(claim)),
            epoch: Epoch(number(epoch)),
            lock_delay: Duration::from_micros(number(lock_delay)),
            quarantined_until: Instant::from_micros(number(until)),
        },
        ["queued", key, claim] => Event::Queued { key: read_key(key), claim: ClaimId(number(claim)) },
        ["contended", key] => Event::Contended { key: read_key(key) },
        ["lost", key] => Event::Lost { key: read_key(key) },
        ["failed", key, claim, kind, reason] => {
            let error = match kind {
                "unavailable" => StoreError::Unavailable(reason.to_owned()),
                "ambiguous" => StoreError::Ambiguous(reason.to_owned()),
                _ => StoreError::Rejected(reason.to_owned()),
            };
            Event::Failed { key: read_key(key), claim: ClaimId(number(claim)), error }
        }
        _ => panic!("not an event: {line}"),
    }
}

fn read_key(text: &str) -> LockKey {
    LockKey::parse(text).unwrap()
}
