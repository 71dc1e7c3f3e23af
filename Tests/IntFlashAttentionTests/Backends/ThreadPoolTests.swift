import IntFlashAttention
import Synchronization
import Testing

#if canImport(Glibc)
import Glibc
#endif

@Suite struct ThreadPoolTests {
  @Test(arguments: [1, 2, 5])
  func everyItemRunsOnce(_ threads: Int) {
    let pool = ThreadPool(threadCount: threads)
    for count in [0, 1, 2, 3, 1000] {
      let calls = Mutex([Int](repeating: 0, count: count))
      pool.run(itemCount: count) { item, _ in calls.withLock { $0[item] += 1 } }
      #expect(calls.withLock { $0.allSatisfy { $0 == 1 } })
    }
  }

  /// The runs of one team follow one another: what one has written the next one reads.
  @Test(arguments: [1, 2, 4])
  func aTeamWorksFromStageToStage(_ threads: Int) {
    let pool = ThreadPool(threadCount: threads)
    for _ in 0..<100 {
      let team = pool.beginTeam(threads: nil)
      #expect((team == nil) == (threads == 1))
      let cells = Mutex([Int](repeating: 0, count: 20))
      for stage in 0..<10 {
        pool.run(itemCount: 20 - stage, in: team) { item, seat in
          #expect((0..<threads).contains(seat))
          cells.withLock { $0[item] = $0[item] == stage ? stage + 1 : -100 }
        }
      }
      pool.endTeam(team)
      #expect(cells.withLock { $0 } == (0..<20).map { min(10, 20 - $0) })
    }
  }

  @Test func seatsAreNotSharedByItemsUnderWay() {
    let pool = ThreadPool(threadCount: 4)
    let taken = Mutex(Set<Int>())
    pool.run(itemCount: 200, threads: 3) { _, seat in
      let isFree = taken.withLock { $0.insert(seat).inserted }
      #expect(isFree && (0..<3).contains(seat))
      _ = taken.withLock { $0.remove(seat) }
    }
  }

  /// Callers inside and beside each other finish, each with its own items.
  @Test func callersShareThePoolWithoutDeadlock() async {
    let pool = ThreadPool(threadCount: 2)
    await withTaskGroup(of: Int.self) { group in
      for caller in 0..<8 {
        group.addTask {
          let sum = Mutex(0)
          pool.run(itemCount: 50) { item, _ in
            pool.run(itemCount: 3) { inner, _ in sum.withLock { $0 += caller + item + inner } }
          }
          return sum.withLock { $0 } - 150 * caller
        }
      }
      for await sum in group { #expect(sum == 3 * (49 * 50 / 2) + 50 * 3) }
    }
  }

  /// Many callers at once, in runs of every size, again and again.
  @Test func everyRunOfManyCallersIsComplete() async {
    let pool = ThreadPool(threadCount: 3, largestThreadCount: 6)
    await withTaskGroup(of: Int.self) { group in
      for caller in 0..<6 {
        group.addTask {
          var broken = 0
          for round in 0..<300 {
            let count = (round * 7 + caller) % 23
            let sum = Atomic<Int>(0)
            pool.run(itemCount: count, threads: 1 + (round + caller) % 6) { item, _ in
              sum.add(item + 1, ordering: .relaxed)
            }
            if sum.load(ordering: .relaxed) != count * (count + 1) / 2 { broken += 1 }
          }
          return broken
        }
      }
      for await broken in group { #expect(broken == 0) }
    }
  }

  @Test func aRunMayAskForMoreThanTheDefaultUpToTheLargest() {
    let pool = ThreadPool(threadCount: 2, largestThreadCount: 4)
    #expect(pool.seatCount(nil) == 2)
    #expect(pool.seatCount(1) == 1)
    #expect(pool.seatCount(0) == 1)
    #expect(pool.seatCount(3) == 3)
    #expect(pool.seatCount(9) == 4)
    // Four items that wait for each other need four threads.
    let arrived = Atomic<Int>(0)
    pool.run(itemCount: 4, threads: 4) { _, _ in
      arrived.add(1, ordering: .relaxed)
      while arrived.load(ordering: .relaxed) < 4 { sched_yield() }
    }
    #expect(arrived.load(ordering: .relaxed) == 4)
  }

  /// Two callers are all that a pool of two threads lets work.
  @Test func helpersMakeRoomForCallers() async {
    final class Counts: Sendable {
      let begun = Atomic<Int>(0)
      let ended = Atomic<Int>(0)
      let helped = Atomic<Int>(0)
    }
    let pool = ThreadPool(threadCount: 2)
    let counts = Counts()
    await withTaskGroup(of: Void.self) { group in
      for _ in 0..<2 {
        group.addTask {
          let isFirst = Atomic<Bool>(true)
          pool.run(itemCount: 200) { item, seat in
            if item == 199 { counts.ended.add(1, ordering: .sequentiallyConsistent) }
            let areBothAtWork =
              counts.begun.load(ordering: .sequentiallyConsistent) == 2
              && counts.ended.load(ordering: .sequentiallyConsistent) == 0
            if seat != 0 && areBothAtWork { counts.helped.add(1, ordering: .relaxed) }
            if seat == 0 && isFirst.exchange(false, ordering: .relaxed) {
              counts.begun.add(1, ordering: .sequentiallyConsistent)
            }
            usleep(50)
          }
        }
      }
    }
    // The item that the helper was about to take when the second caller came.
    #expect(counts.helped.load(ordering: .relaxed) <= 1)
  }

  #if canImport(Glibc)
  /// A forked process has none of the threads, but can compute.
  @Test func aForkedProcessStartsItsOwnHelpers() throws {
    // Swift hides `fork`, as little may be done in a child.
    typealias Fork = @convention(c) () -> pid_t
    let symbol = try unsafe #require(dlsym(nil, "fork"))
    let fork = unsafe unsafeBitCast(symbol, to: Fork.self)
    func computes() -> Bool {
      let sum = Atomic<Int>(0)
      ThreadPool.shared.run(itemCount: 100) { item, _ in sum.add(item, ordering: .relaxed) }
      return sum.load(ordering: .relaxed) == 4950
    }
    #expect(computes())
    let child = fork()
    if child == 0 {
      alarm(30)
      _exit(computes() && computes() ? 0 : 1)
    }
    var status: Int32 = -1
    #expect(unsafe waitpid(child, &status, 0) == child)
    #expect(status == 0)
    #expect(computes())
  }
  #endif
}
