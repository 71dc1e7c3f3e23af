internal import CAttentionKernels

/// What this process may use of the machine's processors.
package struct CPUProcessors: Hashable, Sendable {
  /// Logical processors that the process may run on (its affinity).
  package let allowedCount: Int
  /// Physical cores among them; on Apple silicon the performance cores.
  package let coreCount: Int
  /// Processors' worth of time that the control groups of the process grant; nil for no limit.
  package let timeLimit: Double?
  /// Threads that a call uses unless told otherwise.
  ///
  /// One per core, as two threads of a core share its multipliers, and no more than the time limit
  /// feeds.
  package let threadCount: Int

  /// As it was when first asked.
  package static let found = CPUProcessors()

  private init() {
    let found = intfa_find_processors()
    allowedCount = Int(found.allowed)
    coreCount = Int(found.cores)
    timeLimit = found.limit > 0 ? found.limit : nil
    threadCount = Int(intfa_default_thread_count(found))
  }

  /// Waits for a change that another thread makes, a short while and without sleeping.
  ///
  /// A sleeping thread takes tens of microseconds to wake, as long as a whole stage of a small call.
  ///
  /// - Returns: whether the change came.
  static func spin(_ hasChanged: () -> Bool) -> Bool {
    let deadline = ContinuousClock.now + spinTime
    repeat {
      for _ in 0..<16 {
        if hasChanged() { return true }
        intfa_pause()
      }
    } while ContinuousClock.now < deadline
    return false
  }

  /// About what falling asleep and being woken cost together.
  private static let spinTime = Duration.microseconds(50)
}
