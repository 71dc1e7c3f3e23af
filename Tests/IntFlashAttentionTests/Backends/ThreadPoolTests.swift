import IntFlashAttention
import Synchronization
import Testing

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
}
