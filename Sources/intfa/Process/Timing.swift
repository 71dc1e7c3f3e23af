/// Times of repeated runs of one thing.
struct Timing {
  private var seconds: [Double] = []

  /// Runs `body` and notes how long it took.
  mutating func measure(_ body: () throws -> Void) rethrows {
    let clock = ContinuousClock()
    add(try clock.measure(body))
  }

  /// Notes what `count` runs took together, as the time of one.
  mutating func add(_ duration: Duration, count: Int = 1) {
    seconds.append(duration / .seconds(1) / Double(count))
  }

  /// Whether nothing has been timed.
  var isEmpty: Bool { seconds.isEmpty }

  /// The shortest time, the one that was disturbed least.
  var least: Double { seconds.min() ?? .nan }

  /// The median; of an even number of runs the mean of the two in the middle.
  var median: Double {
    guard !seconds.isEmpty else { return .nan }
    let sorted = seconds.sorted()
    return (sorted[(sorted.count - 1) / 2] + sorted[sorted.count / 2]) / 2
  }

  /// Runs things in turn, so that whatever slows the machine down meets all of them alike.
  ///
  /// Each thing is warmed up once. Then rounds follow, one run each, until `budget` seconds per thing
  /// are spent, and at least one.
  ///
  /// - Parameters:
  ///   - count: how many things there are.
  ///   - budget: seconds per thing.
  ///   - warmUp: runs thing number `index` unmeasured.
  ///   - run: runs thing number `index`.
  /// - Returns: the times of each thing.
  static func alternating(
    _ count: Int,
    budget: Double,
    warmUp: (_ index: Int) throws -> Void,
    run: (_ index: Int) throws -> Void
  ) rethrows -> [Timing] {
    var timings = [Timing](repeating: Timing(), count: count)
    for index in 0..<count { try warmUp(index) }
    try takeTurns(count, budget: budget) { index in
      try timings[index].measure { try run(index) }
    }
    return timings
  }

  /// Calls `turn` for each of `count` things, again and again until `budget` seconds per thing are
  /// spent, and at least once.
  static func takeTurns(
    _ count: Int,
    budget: Double,
    _ turn: (_ index: Int) throws -> Void
  ) rethrows {
    let start = ContinuousClock.now
    let limit = Duration.seconds(budget * Double(count))
    repeat {
      for index in 0..<count { try turn(index) }
    } while ContinuousClock.now - start < limit
  }
}
