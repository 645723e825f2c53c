//! How a deliberate difference from QEMU is told from a fault. The differences themselves are in `differences`;
//! whatever differs and is not there fails the test.

use crate::ask::Answer;
use crate::compare::Difference;
use crate::step::Step;
use crate::world::World;

/// The share mode that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Passthrough,
    Squash,
    MappedXattr,
    MappedFile,
}

impl Mode {
    /// QEMU's `security_model`.
    pub fn qemu(self) -> &'static str {
        match self {
            Mode::Passthrough => "passthrough",
            Mode::Squash => "none",
            Mode::MappedXattr => "mapped-xattr",
            Mode::MappedFile => "mapped-file",
        }
    }

    pub fn mapped(self) -> bool {
        matches!(self, Mode::MappedXattr | Mode::MappedFile)
    }
}

/// What a rule looks at.
pub struct Context<'a> {
    pub mode: Mode,
    pub step: &'a Step,
    pub world: &'a World,
    /// The mode that the guest sees at the step's fid, when the step changes attributes or content.
    pub guest_mode: Option<u32>,
}

impl Context<'_> {
    pub fn set_id(&self) -> bool {
        self.guest_mode.is_some_and(|mode| mode & 0o6000 != 0)
    }
}

/// How a difference is allowed.
pub enum Allow {
    /// The step's effect differs though the answers may not: it is left out before it is sent.
    Leave(fn(&Context<'_>) -> bool),
    /// As `Leave`, known from the answers (QEMU's, ours) only.
    Effect(fn(&Context<'_>, &Answer, &Answer) -> bool),
    /// The answers (QEMU's, ours) differ: the sequence is done again without the step.
    Answers(fn(&Context<'_>, &Answer, &Answer) -> bool),
    /// One field of the answer is not compared.
    Field(&'static str, fn(&Context<'_>) -> bool),
}

/// A deliberate difference.
pub struct Rule {
    pub name: &'static str,
    pub reason: &'static str,
    pub allow: Allow,
}

/// The rule that leaves this step out.
pub fn leave(rules: &'static [Rule], context: &Context<'_>) -> Option<&'static Rule> {
    rules
        .iter()
        .find(|rule| matches!(rule.allow, Allow::Leave(applies) if applies(context)))
}

/// Takes out the differences that are fields which a rule excludes, then says which rule allows the rest.
pub fn excuse(
    rules: &'static [Rule],
    context: &Context<'_>,
    answers: [&Answer; 2],
    differences: &mut Vec<Difference>,
) -> Option<&'static Rule> {
    differences.retain(|difference| {
        !rules.iter().any(|rule| {
            matches!(rule.allow, Allow::Field(field, applies) if field == difference.field && applies(context))
        })
    });
    let [theirs, ours] = answers;
    rules.iter().find(|rule| match rule.allow {
        Allow::Effect(applies) => applies(context, theirs, ours),
        Allow::Answers(applies) => !differences.is_empty() && applies(context, theirs, ours),
        _ => false,
    })
}

/// What the rules look at beforehand.
pub fn needs_mode(step: &Step) -> Option<u32> {
    match step {
        Step::Setattr { fid, .. }
        | Step::Write { fid, .. }
        | Step::Fill { fid, .. }
        | Step::Lopen { fid, .. }
        | Step::Readlink { fid } => Some(*fid),
        _ => None,
    }
}
