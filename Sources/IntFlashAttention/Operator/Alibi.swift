#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// ALiBi: attention with linear biases (Press, Smith and Lewis, 2022).
public enum Alibi {
  /// The slopes of the paper, one per query head: 2^(−8 i / n) for n heads where n is a power of two;
  /// otherwise those of the next smaller power of two, then every second one of the next larger.
  ///
  /// - Parameter headCount: query heads, at least 1.
  /// - Returns: [headCount], all positive.
  public static func slopes(headCount: Int) -> [Float] {
    precondition(headCount >= 1, "headCount is at least 1")
    var power = 1
    while power * 2 <= headCount { power *= 2 }
    func regular(_ count: Int, from first: Int, by step: Int) -> [Float] {
      stride(from: first, through: count, by: step).map {
        Float(exp2(-8 * Double($0) / Double(count)))
      }
    }
    let extra = regular(2 * power, from: 1, by: 2).prefix(headCount - power)
    return regular(power, from: 1, by: 1) + extra
  }
}
