//! What the recording upstream is told to do with a request, in one header: `delay=200; status=404; trailers`.

use std::time::Duration;

/// The header that carries the behaviour.
pub const HEADER: &str = "x-behave";

/// How the upstream treats one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// Work before anything is answered. It goes on when the proxy goes away.
    pub delay: Duration,
    /// The status code.
    pub status: u16,
    /// Bytes of body.
    pub body: usize,
    /// The body comes in this many parts...
    pub parts: u32,
    /// ... with this pause before each of them.
    pub pause: Duration,
    /// How the answer ends.
    pub finish: Finish,
    /// Answer without reading the request's body.
    pub early: bool,
    /// The `location` header of the answer.
    pub location: Option<String>,
    /// Before it answers, it posts to this path of the proxy, with the holder secret that it was given, if it was. Its
    /// own answer has the status of that one's.
    pub call: Option<String>,
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Completely.
    Complete,
    /// Completely, with trailers.
    Trailers,
    /// The connection is closed before the head.
    CutBeforeHead,
    /// The connection is closed in the middle of the body.
    CutInBody,
    /// It never begins.
    Never,
}

impl Behaviour {
    /// Reads the header's value; an empty one is "200, at once, with a short body".
    ///
    /// # Panics
    /// If a word is not known: a test with a typing error must not pass.
    pub fn parse(text: &str) -> Self {
        let mut behaviour = Self {
            delay: Duration::ZERO,
            status: 200,
            body: 2,
            parts: 1,
            pause: Duration::ZERO,
            finish: Finish::Complete,
            early: false,
            location: None,
            call: None,
        };
        for word in text.split(';').map(str::trim).filter(|word| !word.is_empty()) {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let number = || value.parse::<u64>().unwrap_or_else(|_| panic!("{word:?} needs a number"));
            match name {
                "delay" => behaviour.delay = Duration::from_millis(number()),
                "status" => behaviour.status = u16::try_from(number()).expect("a status code"),
                "body" => behaviour.body = usize::try_from(number()).expect("a body size"),
                "parts" => behaviour.parts = u32::try_from(number()).expect("a number of parts"),
                "pause" => behaviour.pause = Duration::from_millis(number()),
                "trailers" => behaviour.finish = Finish::Trailers,
                "cut-before-head" => behaviour.finish = Finish::CutBeforeHead,
                "cut-in-body" => behaviour.finish = Finish::CutInBody,
                "never" => behaviour.finish = Finish::Never,
                "location" => behaviour.location = Some(value.to_owned()),
                "call" => behaviour.call = Some(value.to_owned()),
                "early" => behaviour.early = true,
                _ => panic!("the upstream does not know how to {word:?}"),
            }
        }
        behaviour
    }
}
