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
/// A caller gets a team, to which helpers come and in which they stay from stage to stage. Items are
/// handed out one at a time, in order, so the caller puts the longest first. The calling thread takes
/// items too and needs nobody else to finish, so callers cannot wait for each other, nested ones
/// neither. Several callers at once share the helpers, and a helper makes room after its item where
/// callers and helpers would be more threads than the pool has.
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
  private var teams: [ThreadTeam] = []
  /// Teams of finished calls, so that steady use makes no new ones.
  private var idleTeams: [ThreadTeam] = []
  private var startedHelperCount = 0
  private var sleepingHelperCount = 0
  /// Callers, and helpers in teams; changed under `mutex`.
  private let busyThreadCount = Atomic<Int>(0)
  /// Changes whenever there may be work for a helper outside its team; changed under `mutex`.
  private let news = Atomic<Int>(0)

  package init(threadCount: Int, largestThreadCount: Int? = nil) {
    self.threadCount = max(threadCount, 1)
    self.largestThreadCount = max(largestThreadCount ?? threadCount, self.threadCount)
    unsafe mutex = .allocate(capacity: 1)
    unsafe wake = .allocate(capacity: 1)
    unsafe finished = .allocate(capacity: 1)
    initializeLocks()
  }

  /// Threads that take part in a run that asks for `threads`.
  package func seatCount(_ threads: Int?) -> Int {
    min(max(threads ?? threadCount, 1), largestThreadCount)
  }

  // MARK: Callers

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
    let team = beginTeam(threads: min(seatCount(threads), max(itemCount, 1)))
    run(itemCount: itemCount, in: team, body)
    endTeam(team)
  }

  /// Threads for the runs of a caller that follow one another.
  ///
  /// - Parameter threads: how many; nil is `threadCount`.
  /// - Returns: the team, to be ended by the same caller; nil where it would be the caller alone.
  package func beginTeam(threads: Int?) -> ThreadTeam? {
    let seats = seatCount(threads)
    guard seats > 1 else { return nil }
    enter()
    // A helper may still be on its way out of a team that has just ended.
    let index = idleTeams.lastIndex { $0.helperCount.load(ordering: .relaxed) == 0 }
    let team = index.map { idleTeams.remove(at: $0) } ?? ThreadTeam()
    team.begin(seatCount: seats)
    teams.append(team)
    busyThreadCount.add(1, ordering: .relaxed)
    leave()
    return team
  }

  /// As ``run(itemCount:threads:_:)``, by a team; nil is the calling thread alone.
  package func run(
    itemCount: Int,
    in team: ThreadTeam?,
    _ body: (_ item: Int, _ seat: Int) -> Void
  ) {
    guard let team, itemCount > 1 else {
      for item in 0..<max(itemCount, 0) { body(item, 0) }
      return
    }
    withoutActuallyEscaping(body) { body in
      team.offer(itemCount: itemCount, body: body)
      callHelpers(to: team, wanted: min(team.seatCount, itemCount) - 1)
      while let item = team.takeItem() { team.perform(item, seat: 0) }
      waitUntilFinished(team)
      team.body = nil
    }
  }

  /// Ends what ``beginTeam(threads:)`` began.
  package func endTeam(_ team: ThreadTeam?) {
    guard let team else { return }
    enter()
    teams.removeAll { $0 === team }
    team.isOver.store(true, ordering: .relaxed)
    idleTeams.append(team)
    busyThreadCount.subtract(1, ordering: .relaxed)
    // Room for a helper in another caller's team.
    let isSleeperUseful = teams.contains { $0.wantsHelp } && announceNews() > 0
    leave()
    if isSleeperUseful { unsafe pthread_cond_signal(wake) }
  }

  private func callHelpers(to team: ThreadTeam, wanted: Int) {
    guard team.helperCount.load(ordering: .relaxed) < wanted else { return }
    enter()
    startHelpers(team.seatCount - 1)
    let missing = wanted - team.helperCount.load(ordering: .relaxed)
    let sleepers = hasRoom(for: team) ? min(announceNews(), missing) : 0
    leave()
    for _ in 0..<max(sleepers, 0) { unsafe pthread_cond_signal(wake) }
  }

  private func waitUntilFinished(_ team: ThreadTeam) {
    if CPUProcessors.spin({ team.isFinished }) { return }
    enter()
    team.isCallerAsleep.store(true, ordering: .sequentiallyConsistent)
    while !team.isFinished { unsafe pthread_cond_wait(finished, mutex) }
    team.isCallerAsleep.store(false, ordering: .relaxed)
    leave()
  }

  // MARK: The mutex

  /// The mutex is held for less than a microsecond, so that it is worth waiting without sleeping.
  private func enter() {
    let isEntered = CPUProcessors.spin { unsafe pthread_mutex_trylock(mutex) == 0 }
    if !isEntered { unsafe pthread_mutex_lock(mutex) }
  }

  private func leave() { unsafe pthread_mutex_unlock(mutex) }

  private func initializeLocks() {
    unsafe pthread_mutex_init(mutex, nil)
    unsafe pthread_cond_init(wake, nil)
    unsafe pthread_cond_init(finished, nil)
  }

  /// A forked process has none of the helpers, nor the callers that were in other threads.
  private func beginAgainInForkedProcess() {
    initializeLocks()
    teams.removeAll()
    idleTeams.removeAll()
    startedHelperCount = 0
    sleepingHelperCount = 0
    busyThreadCount.store(0, ordering: .relaxed)
  }

  /// Returns how many helpers sleep and do not see it.
  private func announceNews() -> Int {
    news.add(1, ordering: .relaxed)
    return sleepingHelperCount
  }

  // MARK: Helpers

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

  /// The life of a helper: wait until a team wants help, work, repeat.
  fileprivate func helperMain() -> Never {
    enter()
    while true {
      if let team = teamToHelp(), let seat = team.freeSeats.popLast() {
        help(team, seat: seat)
      } else {
        waitForNews()
      }
    }
  }

  /// The team with the fewest helpers.
  private func teamToHelp() -> ThreadTeam? {
    var chosen: ThreadTeam?
    for team in teams where team.wantsHelp && hasRoom(for: team) {
      let helpers = team.helperCount.load(ordering: .relaxed)
      if let chosen, chosen.helperCount.load(ordering: .relaxed) <= helpers { continue }
      chosen = team
    }
    return chosen
  }

  /// Whether a thread more may work in a team.
  private func hasRoom(for team: ThreadTeam) -> Bool {
    busyThreadCount.load(ordering: .relaxed) < max(threadCount, team.seatCount)
  }

  /// Works in a team until it is over or another team may need help, and not while callers and
  /// helpers are too many.
  private func help(_ team: ThreadTeam, seat: Int) {
    let limit = max(threadCount, team.seatCount)
    team.helperCount.add(1, ordering: .relaxed)
    busyThreadCount.add(1, ordering: .relaxed)
    leave()
    var seen: Int
    repeat {
      seen = news.load(ordering: .relaxed)
      while busyThreadCount.load(ordering: .relaxed) <= limit, let item = team.takeItem() {
        guard team.perform(item, seat: seat),
          team.isCallerAsleep.load(ordering: .sequentiallyConsistent)
        else { continue }
        enter()
        unsafe pthread_cond_broadcast(finished)
        leave()
      }
    } while CPUProcessors.spin {
      team.hasItems || team.isOver.load(ordering: .relaxed)
        || news.load(ordering: .relaxed) != seen
    } && busyThreadCount.load(ordering: .relaxed) <= limit && team.hasItems
    enter()
    team.freeSeats.append(seat)
    team.helperCount.subtract(1, ordering: .relaxed)
    busyThreadCount.subtract(1, ordering: .relaxed)
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

/// The threads that work for one caller, and the items of its current run.
package final class ThreadTeam: @unchecked Sendable {
  // Sendable: a variable is touched under the pool's mutex, or by the caller while no item is left
  // and by others while they have one; the rest is atomic.

  /// Items of the run that nobody has taken.
  private let untaken = Atomic<Int>(0)
  /// Items of the run that are not done.
  private let unfinished = Atomic<Int>(0)
  private var itemCount = 0
  fileprivate var body: ((_ item: Int, _ seat: Int) -> Void)?

  fileprivate private(set) var seatCount = 0
  /// Seats that nobody has; a seat numbers a thread within the team, and 0 is the caller's.
  fileprivate var freeSeats: [Int] = []
  /// Helpers in the team; changed under the pool's mutex.
  fileprivate let helperCount = Atomic<Int>(0)
  fileprivate let isOver = Atomic<Bool>(false)
  fileprivate let isCallerAsleep = Atomic<Bool>(false)

  fileprivate func begin(seatCount: Int) {
    self.seatCount = seatCount
    freeSeats.removeAll(keepingCapacity: true)
    for seat in (1..<seatCount).reversed() { freeSeats.append(seat) }
    isOver.store(false, ordering: .relaxed)
  }

  fileprivate func offer(itemCount: Int, body: @escaping (_ item: Int, _ seat: Int) -> Void) {
    self.itemCount = itemCount
    self.body = body
    unfinished.store(itemCount, ordering: .relaxed)
    untaken.store(itemCount, ordering: .releasing)
  }

  fileprivate var hasItems: Bool { untaken.load(ordering: .relaxed) > 0 }
  fileprivate var wantsHelp: Bool { !freeSeats.isEmpty && hasItems }
  fileprivate var isFinished: Bool { unfinished.load(ordering: .sequentiallyConsistent) == 0 }

  /// The next item, or nil where all are taken.
  fileprivate func takeItem() -> Int? {
    var left = untaken.load(ordering: .relaxed)
    while left > 0 {
      let (isTaken, now) = untaken.weakCompareExchange(
        expected: left,
        desired: left - 1,
        ordering: .acquiring
      )
      // Whose run it is: that of now, as the run cannot end before its item is done.
      if isTaken { return itemCount - left }
      left = now
    }
    return nil
  }

  /// Does an item.
  ///
  /// - Returns: whether it was the last one of the run to be done.
  @discardableResult
  fileprivate func perform(_ item: Int, seat: Int) -> Bool {
    callBody(item, seat: seat)
    return unfinished.subtract(1, ordering: .sequentiallyConsistent).newValue == 0
  }

  /// Not inlined, so that no reference to the body outlives the call: the run ends with its last item.
  @inline(never)
  private func callBody(_ item: Int, seat: Int) { body?(item, seat) }
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
