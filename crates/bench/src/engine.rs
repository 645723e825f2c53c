//! Keeps a ring busy and counts.

use std::time::{Duration, Instant};

use testkit::ring::Ring;

use crate::exchange::Exchange;

/// One operation: its exchanges in order. Each lane has one operation in flight at a time.
#[derive(Debug)]
pub struct Lane {
    /// The operation's requests.
    pub exchanges: Vec<Exchange>,
    at: usize,
    started: Option<Instant>,
}

impl Lane {
    /// An operation made of `exchanges`.
    pub fn new(exchanges: Vec<Exchange>) -> Lane {
        Lane {
            exchanges,
            at: 0,
            started: None,
        }
    }
}

/// What a run of operations came to.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Operations per second.
    pub rate: f64,
    /// Median latency in nanoseconds, when latency was measured.
    pub median: f64,
    /// 99th percentile in nanoseconds.
    pub p99: f64,
}

impl Run {
    /// Sorts latencies (nanoseconds) into a result.
    pub fn from_latencies(mut all: Vec<u64>) -> Run {
        all.sort_unstable();
        let pick = |part: f64| all.get((all.len() as f64 * part) as usize).copied().unwrap_or(0) as f64;
        Run {
            rate: 0.0,
            median: pick(0.5),
            p99: pick(0.99),
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

struct Driver<'a> {
    ring: &'a mut Ring,
    lanes: &'a mut [Lane],
    owner: Vec<usize>,
}

impl<'a> Driver<'a> {
    fn new(ring: &'a mut Ring, lanes: &'a mut [Lane]) -> Driver<'a> {
        let owner = vec![usize::MAX; usize::from(ring.options().size)];
        Driver { ring, lanes, owner }
    }

    fn submit(&mut self, lane: usize) -> Result<(), String> {
        let at = self.lanes[lane].at;
        let exchange = &mut self.lanes[lane].exchanges[at];
        exchange.prepare();
        let token = self
            .ring
            .stage(&exchange.readable, &exchange.writable)
            .ok_or("the ring is full")?;
        self.owner[usize::from(token)] = lane;
        Ok(())
    }

    fn wait(&mut self) -> Result<(usize, u32), String> {
        let mut spins = 0u32;
        let mut since = None;
        loop {
            if let Some((token, used)) = self.ring.poll_used() {
                return Ok((self.owner[usize::from(token)], used));
            }
            std::hint::spin_loop();
            spins += 1;
            if spins.is_multiple_of(1 << 16) && since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                return Err("no reply".to_string());
            }
        }
    }

    /// Takes a reply; whether the lane's operation is complete.
    fn advance(&mut self, lane: usize, used: u32) -> Result<bool, String> {
        let lane = &mut self.lanes[lane];
        let exchange = &lane.exchanges[lane.at];
        exchange
            .check(used)
            .map_err(|why| format!("step {}: {why}", lane.at))?;
        for carry in &exchange.carries {
            lane.exchanges[carry.exchange].patch(carry.to, exchange.reply_u64(carry.from));
        }
        lane.at += 1;
        if lane.at < lane.exchanges.len() {
            return Ok(false);
        }
        lane.at = 0;
        Ok(true)
    }
}

/// All lanes as fast as they go, for about `length`.
pub fn throughput(ring: &mut Ring, lanes: &mut [Lane], length: Duration) -> Result<Run, String> {
    let mut driver = Driver::new(ring, lanes);
    let count = driver.lanes.len();
    let begin = Instant::now();
    for lane in 0..count {
        driver.submit(lane)?;
    }
    driver.ring.notify();
    let (mut busy, mut done, mut ending) = (count, 0u64, false);
    while busy > 0 {
        let (lane, used) = driver.wait()?;
        let mut next = Some((lane, used));
        // Everything that is complete is taken before the device is told of new work, as a guest's interrupt
        // handler does.
        while let Some((lane, used)) = next {
            if driver.advance(lane, used)? {
                done += 1;
                if done.is_multiple_of(16) || count == 1 {
                    ending = ending || begin.elapsed() >= length;
                }
                if ending { busy -= 1 } else { driver.submit(lane)? }
            } else {
                driver.submit(lane)?;
            }
            next = driver
                .ring
                .poll_used()
                .map(|(token, used)| (driver.owner[usize::from(token)], used));
        }
        driver.ring.notify();
    }
    Ok(Run {
        rate: done as f64 / begin.elapsed().as_secs_f64(),
        ..Run::default()
    })
}

/// Lane 0 one operation at a time with `think` of busy waiting between, its latencies measured; the other lanes
/// keep the device busy meanwhile.
pub fn latency(
    ring: &mut Ring,
    lanes: &mut [Lane],
    think: Duration,
    length: Duration,
) -> Result<Run, String> {
    let mut driver = Driver::new(ring, lanes);
    let count = driver.lanes.len();
    let begin = Instant::now();
    let mut all = Vec::with_capacity(1 << 16);
    for lane in 1..count {
        driver.submit(lane)?;
    }
    driver.ring.notify();
    let mut background = count - 1;
    let mut due = Some(Instant::now());
    loop {
        let now = Instant::now();
        let ending = now - begin >= length;
        if due.is_some_and(|at| at <= now) {
            due = None;
            if !ending {
                driver.lanes[0].started = Some(Instant::now());
                driver.submit(0)?;
                driver.ring.notify();
            }
        }
        if ending && driver.lanes[0].started.is_none() && background == 0 {
            break;
        }
        if now - begin > length + PATIENCE {
            return Err("no reply".to_string());
        }
        let Some((token, used)) = driver.ring.poll_used() else {
            std::hint::spin_loop();
            continue;
        };
        let lane = driver.owner[usize::from(token)];
        let complete = driver.advance(lane, used)?;
        if !complete {
            driver.submit(lane)?;
        } else if lane == 0 {
            let end = Instant::now();
            if let Some(start) = driver.lanes[0].started.take() {
                all.push((end - start).as_nanos() as u64);
            }
            due = Some(end + think);
        } else if ending {
            background -= 1;
        } else {
            driver.submit(lane)?;
        }
        driver.ring.notify();
    }
    Ok(Run::from_latencies(all))
}

/// One exchange, waited for: set-up work.
pub fn once(ring: &mut Ring, exchange: Exchange) -> Result<Exchange, String> {
    let mut lanes = [Lane::new(vec![exchange])];
    let mut driver = Driver::new(ring, &mut lanes);
    driver.submit(0)?;
    driver.ring.notify();
    let (lane, used) = driver.wait()?;
    driver.advance(lane, used)?;
    let [lane] = lanes;
    lane.exchanges
        .into_iter()
        .next()
        .ok_or_else(|| "no exchange".to_string())
}
