//! Which system calls the worker can make: one list for the whole process, and a shorter one for each kind of thread.
//!
//! Filters add up: the strictest answer counts. What a request needs is allowed whatever its arguments, which the kernel
//! finds out once and remembers (seccomp_cache_prepare): such a call runs no filter.

use std::sync::OnceLock;

use device::Role;
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// What becomes of a call that is not in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The process is killed.
    Kill,
    /// The call is made, and the kernel writes a line to its audit log.
    Log,
}

/// What the lists depend on.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// What becomes of other calls.
    pub verdict: Verdict,
    /// Threads work as other users.
    pub switches_users: bool,
    /// Objects are opened by file handle.
    pub opens_handles: bool,
}

/// Missing from libc: the calls by name and file of Linux 6.13.
const SYS_SETXATTRAT: c_long = 463;
const SYS_GETXATTRAT: c_long = 464;
const SYS_LISTXATTRAT: c_long = 465;
const SYS_REMOVEXATTRAT: c_long = 466;

/// What a thread needs to be one: memory, locks, an end, a line in the log.
const THREAD: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// What a request of the guest needs.
const REQUEST: &[c_long] = &[
    libc::SYS_dup,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getuid,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lseek,
    libc::SYS_lsetxattr,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_name_to_handle_at,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_removexattr,
    libc::SYS_renameat2,
    libc::SYS_setxattr,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    SYS_GETXATTRAT,
    SYS_LISTXATTRAT,
    SYS_REMOVEXATTRAT,
    SYS_SETXATTRAT,
    // What a panic's backtrace asks for, to name the program and to shorten paths.
    libc::SYS_getcwd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    // With -1 they ask which it is.
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    // CAP_FSETID comes and goes with single operations.
    libc::SYS_capget,
    libc::SYS_capset,
];

/// Working as another user, for one operation.
const USERS: &[c_long] = &[libc::SYS_setgroups];

/// Waiting for events.
const EVENTS: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
];

/// The front-end's connection.
const CONNECTION: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
];

/// Waiting for the signals that end the program.
const SIGNALS: &[c_long] = &[libc::SYS_rt_sigtimedwait, libc::SYS_shutdown];

/// Calls of newer kernels that libc tries first and does without: they are answered as an older kernel answers.
const MISSING: &[c_long] = &[
    // Its flags are in memory, where no filter sees them; clone(2) follows.
    libc::SYS_clone3,
    libc::SYS_faccessat2,
    libc::SYS_futex_waitv,
    libc::SYS_io_uring_setup,
    libc::SYS_membarrier,
    libc::SYS_pkey_alloc,
];

/// What makes a child a process of its own, or puts it into namespaces of its own.
const NEW: i32 = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;
const THREADS: i32 = libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND;

/// What is asked of a descriptor. Not F_SETOWN and its kin, with which the kernel sends signals to any process of the user
/// (fcntl(2), "Managing signals").
const FCNTL: &[i32] = &[
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
];

type Rule = (c_long, Vec<SeccompRule>);
type Compiled = Result<BpfProgram, seccompiler::BackendError>;

fn number(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

/// A rule for calls whose argument `index` has `value` in the bits of `mask`.
fn masked(index: u8, mask: u64, value: u64) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let condition = SeccompCondition::new(
        index,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(mask),
        value & mask,
    )?;
    Ok(vec![SeccompRule::new(vec![condition])?])
}

/// A rule for calls whose argument `index` is no pointer: all its 64 bits are compared, because memory can be mapped where
/// the lower ones are 0.
fn null(index: u8) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    Ok(vec![SeccompRule::new(vec![condition])?])
}

/// A rule for calls whose argument `index`, an int, is `value`.
fn equal(index: u8, value: u64) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
    Ok(vec![SeccompRule::new(vec![condition])?])
}

/// Calls that are allowed with some arguments only; for all threads, because whatever makes a thread makes these.
fn conditional() -> Result<Vec<Rule>, seccompiler::BackendError> {
    let exec = number(libc::PROT_EXEC);
    let mut rules = vec![
        // Threads, and no processes.
        (
            libc::SYS_clone,
            masked(0, number(THREADS | NEW), number(THREADS))?,
        ),
        // No memory becomes code.
        (libc::SYS_mmap, masked(2, exec, 0)?),
        (libc::SYS_mprotect, masked(2, exec, 0)?),
        (
            libc::SYS_prctl,
            [
                equal(0, number(libc::PR_SET_NAME))?,
                equal(0, number(libc::PR_SET_NO_NEW_PRIVS))?,
            ]
            .concat(),
        ),
        // A filter more can only forbid more.
        (
            libc::SYS_seccomp,
            equal(0, u64::from(libc::SECCOMP_SET_MODE_FILTER))?,
        ),
        // abort(3), which signals its own process.
        (libc::SYS_tgkill, equal(0, u64::from(std::process::id()))?),
        // Limits are asked for, by pthread_getattr_np(3), and not set.
        (libc::SYS_prlimit64, null(2)?),
        (
            libc::SYS_fcntl,
            FCNTL
                .iter()
                .map(|&command| equal(1, number(command)))
                .collect::<Result<Vec<_>, _>>()?
                .concat(),
        ),
        // Blocking or not, of a socket.
        (libc::SYS_ioctl, equal(1, libc::FIONBIO)?),
    ];
    rules.sort_by_key(|(call, _)| *call);
    Ok(rules)
}

fn compile(rules: Vec<Rule>, matched: SeccompAction, otherwise: SeccompAction) -> Compiled {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules.into_iter().collect(), otherwise, matched, arch)?.try_into()
}

fn allow(lists: &[&[c_long]], policy: &Policy) -> Compiled {
    let mut rules = conditional()?;
    rules.extend(lists.iter().copied().flatten().map(|&call| (call, Vec::new())));
    rules.extend(MISSING.iter().map(|&call| (call, Vec::new())));
    let otherwise = match policy.verdict {
        Verdict::Kill => SeccompAction::KillProcess,
        Verdict::Log => SeccompAction::Log,
    };
    compile(rules, SeccompAction::Allow, otherwise)
}

/// The filters of the kinds of threads.
struct Roles {
    queue: BpfProgram,
    pool: BpfProgram,
    control: BpfProgram,
    /// Waits for signals, or writes the log.
    helper: BpfProgram,
}

static ROLES: OnceLock<Roles> = OnceLock::new();

/// Calls that the tests of an older kernel hide.
fn hidden() -> &'static [c_long] {
    #[cfg(debug_assertions)]
    if super::probe::old_kernel() {
        return &[SYS_GETXATTRAT, SYS_LISTXATTRAT, SYS_REMOVEXATTRAT, SYS_SETXATTRAT];
    }
    &[]
}

fn build(policy: &Policy) -> Result<(BpfProgram, BpfProgram, Roles), seccompiler::BackendError> {
    let users: &[c_long] = if policy.switches_users { USERS } else { &[] };
    let handles: &[c_long] = if policy.opens_handles {
        &[libc::SYS_open_by_handle_at]
    } else {
        &[]
    };
    let everything = [THREAD, REQUEST, users, handles, EVENTS, CONNECTION, SIGNALS];
    let missing = MISSING.iter().chain(hidden()).map(|&call| (call, Vec::new()));
    let missing = compile(
        missing.collect(),
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
        SeccompAction::Allow,
    )?;
    let roles = Roles {
        queue: allow(&[THREAD, REQUEST, users, handles, EVENTS], policy)?,
        pool: allow(&[THREAD, REQUEST, users, handles], policy)?,
        // It ends locks and fids when the connection ends, and may finish requests.
        control: allow(&[THREAD, REQUEST, users, handles, EVENTS, CONNECTION], policy)?,
        helper: allow(&[THREAD, SIGNALS], policy)?,
    };
    Ok((missing, allow(&everything, policy)?, roles))
}

/// Filters the calls of this thread, the only one, and of all that it makes from now on.
pub fn filter_process(policy: &Policy) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("The system calls cannot be filtered: {error}.");
    let (missing, everything, roles) = build(policy).map_err(|error| failed(&error))?;
    apply_filter(&missing).map_err(|error| failed(&error))?;
    apply_filter(&everything).map_err(|error| failed(&error))?;
    let _ = ROLES.set(roles);
    Ok(())
}

/// Filters the calls of the calling thread further, to what its role needs; nothing where [`filter_process`] was not
/// called. A thread whose calls cannot be filtered does not go on.
pub fn filter_thread(role: Role) {
    let Some(roles) = ROLES.get() else { return };
    let program = match role {
        Role::Queue => &roles.queue,
        Role::Pool => &roles.pool,
        Role::Control => &roles.control,
    };
    apply(program);
}

/// As [`filter_thread`] for the threads that wait for signals and write the log.
pub fn filter_helper() {
    if let Some(roles) = ROLES.get() {
        apply(&roles.helper);
    }
}

fn apply(program: &BpfProgram) {
    if let Err(error) = apply_filter(program) {
        log::error!("A thread's system calls cannot be filtered ({error}): stopping.");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_list_has_a_call_twice_or_one_that_must_not_be() {
        let policy = Policy {
            verdict: Verdict::Kill,
            switches_users: true,
            opens_handles: false,
        };
        build(&policy).unwrap();
        let denied = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_open_by_handle_at,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bpf,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_kill,
            libc::SYS_process_vm_writev,
        ];
        for list in [THREAD, REQUEST, USERS, EVENTS, CONNECTION, SIGNALS] {
            let distinct: HashSet<_> = list.iter().collect();
            assert_eq!(distinct.len(), list.len());
            assert!(denied.iter().all(|call| !list.contains(call)));
        }
    }
}
