/// A bar on standard error, for what takes longer than a second and is watched at a terminal.
final class Progress {
  private let total: Double
  private let isShown: Bool
  private let start = ContinuousClock.now
  private var done = 0.0
  private var isDrawn = false

  /// A bar for work of this size, in any unit.
  init(total: Double, quiet: Bool) {
    self.total = max(total, .leastNormalMagnitude)
    isShown = !quiet && Console.isTerminal
  }

  deinit { clear() }

  /// Notes that `amount` of the work is done and names what comes next.
  func advance(_ amount: Double, next label: String = "") {
    done += amount
    guard isShown, ContinuousClock.now - start > .seconds(1) else { return }
    let width = 30
    let fraction = min(max(done / total, 0), 1)
    let full = Int((Double(width) * fraction).rounded(.down))
    let bar = String(repeating: "#", count: full) + String(repeating: ".", count: width - full)
    let percent = String(Int(100 * fraction))
    let room = String(repeating: " ", count: max(3 - percent.count, 0))
    // ESC [K clears the rest of the line.
    Console.write("\r[\(bar)] \(room)\(percent) % \(label)\u{1B}[K")
    isDrawn = true
  }

  /// Removes the bar.
  func clear() {
    guard isDrawn else { return }
    Console.write("\r\u{1B}[K")
    isDrawn = false
  }
}
