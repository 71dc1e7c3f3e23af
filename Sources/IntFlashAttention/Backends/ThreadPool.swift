#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif
import Synchronization

/// The only maker of threads: they are started once and sleep between calls.
///
/// Items are handed out one at a time from a counter, in order, so the caller puts the longest first.
/// The calling thread takes items too and needs nobody else to finish, so callers cannot wait for each
/// other, nested ones neither. Several callers at once share the helpers, and a helper makes room
/// after its item where callers and helpers would be more threads than the pool has.
@safe
package final class ThreadPool: @unchecked Sendable {
  // Sendable: variables are only touched under `mutex`, the rest is atomic or constant.

  /// The pool of the process.
  package static let shared: ThreadPool = {
    let processors = CPUProcessors.found
    let pool = ThreadPool(
      threadCount: processors.threadCount,
      largestThreadCount: processors.allowedCount
    )
    pthread_atfork(
      { ThreadPool.shared.enter() },
      { ThreadPool.shared.leave() },
      { ThreadPool.shared.beginAgainInForkedProcess() }
    )
    return pool
  }()

  /// Threads that run items unless a run asks for another number, the caller included.
  package let threadCount: Int
  /// The most that a run can ask for.
  package let largestThreadCount: Int

  private let mutex: UnsafeMutablePointer<pthread_mutex_t>
  private let wake: UnsafeMutablePointer<pthread_cond_t>
  private let finished: UnsafeMutablePointer<pthread_cond_t>
  private var jobs: [Job] = []
  /// Finished jobs, so that steady use makes no new ones.
  private var idleJobs: [Job] = []
  private var startedHelperCount = 0
  private var sleepingHelperCount = 0
  private var sleepingCallerCount = 0
  /// Callers and helpers at work; changed under `mutex`.
  private let busyThreadCount = Atomic<Int>(0)
  /// Changes whenever there may be work for a helper; changed under `mutex`.
  private let news = Atomic<Int>(0)

  package init(threadCount: Int, largestThreadCount: Int? = nil) {
    self.threadCount = max(threadCount, 1)
    self.largestThreadCount = max(largestThreadCount ?? threadCount, self.threadCount)
    unsafe mutex = .allocate(capacity: 1)
    unsafe wake = .allocate(capacity: 1)
    unsafe finished = .allocate(capacity: 1)
    initializeLocks()
  }

  /// One `run`: items still to be taken, and who is at work.
  private final class Job {
    var itemCount = 0
    var seatCount = 0
    var body: ((Int, Int) -> Void)?
    let next = Atomic<Int>(0)
    /// Helpers at work; changed under the pool's mutex.
    let helperCount = Atomic<Int>(0)
    /// Seats that nobody has; a seat numbers a thread within the job, and 0 is the caller's.
    var freeSeats: [Int] = []

    var hasItems: Bool { next.load(ordering: .relaxed) < itemCount }
    var wantsHelp: Bool { !freeSeats.isEmpty && hasItems }

    func begin(itemCount: Int, seatCount: Int, body: @escaping (Int, Int) -> Void) {
      self.itemCount = itemCount
      self.seatCount = seatCount
      self.body = body
      next.store(0, ordering: .relaxed)
      freeSeats.removeAll(keepingCapacity: true)
      for seat in (1..<seatCount).reversed() { freeSeats.append(seat) }
    }

    func work(seat: Int, while mayContinue: () -> Bool) {
      guard let body else { return }
      while mayContinue() {
        let item = next.add(1, ordering: .relaxed).oldValue
        guard item < itemCount else { return }
        body(item, seat)
      }
    }
  }

  /// Calls `body(item, seat)` once for each item in `0..<itemCount` and returns when all are done.
  ///
  /// - Parameters:
  ///   - itemCount: how many items there are.
  ///   - threads: how many threads may work on them; nil is `threadCount`. Asking for more than the
  ///     pool has starts no more threads.
  ///   - body: the work. `seat` is in `0..<seatCount(threads)`; no two calls of one run that are
  ///     under way at the same time have the same seat, so it can index scratch memory.
  package func run(
    itemCount: Int,
    threads: Int? = nil,
    _ body: (_ item: Int, _ seat: Int) -> Void
  ) {
    let seats = min(seatCount(threads), itemCount)
    guard seats > 1 else {
      for item in 0..<max(itemCount, 0) { body(item, 0) }
      return
    }
    withoutActuallyEscaping(body) { body in
      enter()
      let job = idleJobs.popLast() ?? Job()
      job.begin(itemCount: itemCount, seatCount: seats, body: body)
      jobs.append(job)
      busyThreadCount.add(1, ordering: .relaxed)
      startHelpers(seats - 1)
      let sleepers = announceNews()
      leave()
      for _ in 0..<min(sleepers, seats - 1) { unsafe pthread_cond_signal(wake) }

      job.work(seat: 0) { true }

      waitForHelpers(of: job)
      jobs.removeAll { $0 === job }
      job.body = nil
      idleJobs.append(job)
      busyThreadCount.subtract(1, ordering: .relaxed)
      // Room for a helper at another caller's job.
      let isSleeperUseful = jobs.contains { $0.wantsHelp } && announceNews() > 0
      leave()
      if isSleeperUseful { unsafe pthread_cond_signal(wake) }
    }
  }

  /// Threads that take part in a run that asks for `threads`.
  package func seatCount(_ threads: Int?) -> Int {
    min(max(threads ?? threadCount, 1), largestThreadCount)
  }

  // MARK: Under the mutex

  /// The mutex is held for less than a microsecond, so that it is worth waiting without sleeping.
  private func enter() {
    let isEntered = CPUProcessors.spin { unsafe pthread_mutex_trylock(mutex) == 0 }
    if !isEntered { unsafe pthread_mutex_lock(mutex) }
  }
  private func leave() { unsafe pthread_mutex_unlock(mutex) }

  /// Returns how many helpers sleep and do not see it.
  private func announceNews() -> Int {
    news.add(1, ordering: .relaxed)
    return sleepingHelperCount
  }

  /// Enters the mutex when nobody is at work on a job any more whose items are all taken.
  private func waitForHelpers(of job: Job) {
    _ = CPUProcessors.spin { job.helperCount.load(ordering: .relaxed) == 0 }
    enter()
    sleepingCallerCount += 1
    while job.helperCount.load(ordering: .relaxed) > 0 {
      unsafe pthread_cond_wait(finished, mutex)
    }
    sleepingCallerCount -= 1
  }

  /// Starts helpers.
  ///
  /// Where a thread cannot be started the others do its work.
  private func startHelpers(_ wanted: Int) {
    while startedHelperCount < wanted {
      let context = unsafe Unmanaged.passRetained(self).toOpaque()
      #if canImport(Darwin)
      var thread: pthread_t?
      #else
      var thread = pthread_t()
      #endif
      let status = unsafe pthread_create(&thread, nil, threadPoolMain, context)
      guard status == 0 else {
        unsafe Unmanaged<ThreadPool>.fromOpaque(context).release()
        return
      }
      #if canImport(Darwin)
      if let thread = unsafe thread { unsafe pthread_detach(thread) }
      #else
      pthread_detach(thread)
      #endif
      startedHelperCount += 1
    }
  }

  private func initializeLocks() {
    unsafe pthread_mutex_init(mutex, nil)
    unsafe pthread_cond_init(wake, nil)
    unsafe pthread_cond_init(finished, nil)
  }

  /// A forked process has none of the helpers, nor the callers that were in other threads.
  private func beginAgainInForkedProcess() {
    initializeLocks()
    jobs.removeAll()
    startedHelperCount = 0
    sleepingHelperCount = 0
    sleepingCallerCount = 0
    busyThreadCount.store(0, ordering: .relaxed)
  }

  // MARK: Helpers

  /// Whether a thread more may work on a job.
  private func hasRoom(for job: Job) -> Bool {
    busyThreadCount.load(ordering: .relaxed) < max(threadCount, job.seatCount)
  }

  /// The job with the fewest helpers.
  private func jobToHelp() -> Job? {
    var chosen: Job?
    for job in jobs where job.wantsHelp && hasRoom(for: job) {
      let helpers = job.helperCount.load(ordering: .relaxed)
      if let chosen, chosen.helperCount.load(ordering: .relaxed) <= helpers { continue }
      chosen = job
    }
    return chosen
  }

  /// The life of a helper: wait until a job wants help, work, repeat.
  fileprivate func helperMain() -> Never {
    enter()
    while true {
      if let job = jobToHelp(), let seat = job.freeSeats.popLast() {
        help(job, seat: seat)
      } else {
        waitForNews()
      }
    }
  }

  private func help(_ job: Job, seat: Int) {
    job.helperCount.add(1, ordering: .relaxed)
    busyThreadCount.add(1, ordering: .relaxed)
    leave()
    let limit = max(threadCount, job.seatCount)
    job.work(seat: seat) { busyThreadCount.load(ordering: .relaxed) <= limit }
    enter()
    job.freeSeats.append(seat)
    busyThreadCount.subtract(1, ordering: .relaxed)
    let remaining = job.helperCount.subtract(1, ordering: .relaxed).newValue
    if remaining == 0 && sleepingCallerCount > 0 { unsafe pthread_cond_broadcast(finished) }
  }

  private func waitForNews() {
    let seen = news.load(ordering: .relaxed)
    leave()
    let isNew = CPUProcessors.spin { news.load(ordering: .relaxed) != seen }
    enter()
    guard !isNew else { return }
    sleepingHelperCount += 1
    while news.load(ordering: .relaxed) == seen { unsafe pthread_cond_wait(wake, mutex) }
    sleepingHelperCount -= 1
  }
}

#if canImport(Darwin)
private func threadPoolMain(_ context: UnsafeMutableRawPointer) -> UnsafeMutableRawPointer? {
  let pool = unsafe Unmanaged<ThreadPool>.fromOpaque(context).takeUnretainedValue()
  pool.helperMain()
}
#else
private func threadPoolMain(_ context: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
  guard let context = unsafe context else { return nil }
  let pool = unsafe Unmanaged<ThreadPool>.fromOpaque(context).takeUnretainedValue()
  pool.helperMain()
}
#endif
