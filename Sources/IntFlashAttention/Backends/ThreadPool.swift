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
/// The calling thread takes items too and needs nobody else to finish; several callers at once share
/// the helpers and cannot wait for each other.
@safe
package final class ThreadPool: @unchecked Sendable {
  // Sendable: `jobs` and `started` are only touched under `mutex`.

  /// The pool of the process.
  package static let shared = ThreadPool(threadCount: InstructionSet.processorCount)

  /// Threads that run items, the caller included.
  package let threadCount: Int

  private let mutex: UnsafeMutablePointer<pthread_mutex_t>
  private let wake: UnsafeMutablePointer<pthread_cond_t>
  private let finished: UnsafeMutablePointer<pthread_cond_t>
  private var jobs: [Job] = []
  private var startedHelperCount = 0

  package init(threadCount: Int) {
    self.threadCount = max(threadCount, 1)
    unsafe mutex = .allocate(capacity: 1)
    unsafe wake = .allocate(capacity: 1)
    unsafe finished = .allocate(capacity: 1)
    unsafe pthread_mutex_init(mutex, nil)
    unsafe pthread_cond_init(wake, nil)
    unsafe pthread_cond_init(finished, nil)
  }

  /// One `run`: items still to be taken, and who is at work.
  private final class Job: @unchecked Sendable {
    // Sendable: `helpers` is only touched under the pool's mutex, the rest is atomic or constant.
    let itemCount: Int
    let seatCount: Int
    let body: (Int, Int) -> Void
    let next = Atomic<Int>(0)
    /// Seats taken, the caller's included; a seat numbers a thread within the job.
    var takenSeatCount = 1
    var activeHelperCount = 0

    init(itemCount: Int, seatCount: Int, body: @escaping (Int, Int) -> Void) {
      self.itemCount = itemCount
      self.seatCount = seatCount
      self.body = body
    }

    func work(seat: Int) {
      while true {
        let item = next.add(1, ordering: .relaxed).oldValue
        guard item < itemCount else { return }
        body(item, seat)
      }
    }

    var wantsHelp: Bool { takenSeatCount < seatCount && next.load(ordering: .relaxed) < itemCount }
  }

  /// Calls `body(item, seat)` once for each item in `0..<itemCount` and returns when all are done.
  ///
  /// - Parameters:
  ///   - itemCount: how many items there are.
  ///   - threads: how many threads may work on them; nil is all of the pool. Asking for more than
  ///     the pool has starts no more threads.
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
      let job = Job(itemCount: itemCount, seatCount: seats, body: body)
      enter()
      startHelpers(seats - 1)
      jobs.append(job)
      unsafe pthread_cond_broadcast(wake)
      leave()

      job.work(seat: 0)

      enter()
      jobs.removeAll { $0 === job }
      while job.activeHelperCount > 0 { unsafe pthread_cond_wait(finished, mutex) }
      leave()
    }
  }

  /// Threads that take part in a run that asks for `threads`.
  package func seatCount(_ threads: Int?) -> Int {
    min(max(threads ?? threadCount, 1), threadCount)
  }

  private func enter() { unsafe pthread_mutex_lock(mutex) }
  private func leave() { unsafe pthread_mutex_unlock(mutex) }

  /// Starts helpers, under the mutex.
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

  /// The life of a helper: sleep until a job wants help, work, repeat.
  fileprivate func helperMain() -> Never {
    enter()
    while true {
      guard let job = jobs.first(where: { $0.wantsHelp }) else {
        unsafe pthread_cond_wait(wake, mutex)
        continue
      }
      let seat = job.takenSeatCount
      job.takenSeatCount += 1
      job.activeHelperCount += 1
      leave()
      job.work(seat: seat)
      enter()
      job.activeHelperCount -= 1
      if job.activeHelperCount == 0 { unsafe pthread_cond_broadcast(finished) }
    }
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
