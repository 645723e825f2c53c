//! Every input of the corpus, and mutations of them from seeds that are always the same: a short run of what
//! `scripts/fuzz` does for as long as one likes.

use std::sync::Mutex;

use fuzz::Target;
use testkit::Random;

/// The targets count this process's descriptors and threads, so one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn short_run(name: &str, mutations: u64) {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let target = Target::named(name).expect("a target");
    let inputs = target.inputs();
    for (file, input) in &inputs {
        println!("{file}");
        (target.run)(input);
    }
    for seed in 0..mutations {
        let mut random = Random::new(seed);
        let mut input = inputs[random.below(inputs.len())].1.clone();
        for _ in 0..1 + random.below(3) {
            (target.mutate)(&mut input, &mut random);
        }
        println!("seed {seed}");
        (target.run)(&input);
    }
}

#[test]
fn any_bytes_are_decoded_or_refused() {
    short_run("decode", 20_000);
}

#[test]
fn any_script_of_messages_is_survived_while_the_host_interferes() {
    short_run("session", 250);
}

#[test]
fn any_ring_in_any_memory_is_survived() {
    short_run("device", 300);
}

#[test]
fn any_vhost_user_messages_with_any_descriptors_are_survived() {
    short_run("control", 60);
}
