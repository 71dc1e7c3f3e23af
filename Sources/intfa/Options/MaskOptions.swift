import ArgumentParser
import IntFlashAttention

/// Which keys a query sees.
struct MaskOptions: ParsableArguments {
  @Flag(
    inversion: .prefixedNo,
    help: "Let a query see the keys up to its own position; the last query sees the last key."
  )
  var causal: Bool?

  @Option(
    help: ArgumentHelp(
      "Let a query see LEFT keys before its own position and RIGHT after it, both included.",
      discussion: "A side without a number is unlimited: ',0' is causal.",
      valueName: "left,right"
    ),
    transform: Window.init
  )
  var window: Window?

  @Option(
    help: ArgumentHelp(
      "Causal, and every query sees the first N keys.",
      valueName: "n"
    )
  )
  var prefix: Int?

  /// The two numbers of a sliding window.
  struct Window {
    let mask: AttentionMask

    init(_ text: String) throws {
      let parts = text.split(separator: ",", omittingEmptySubsequences: false)
      let sides = parts.map { Int($0) }
      guard parts.count == 2,
        zip(parts, sides).allSatisfy({ part, side in part.isEmpty || (side.map { $0 >= 0 } ?? false)
        })
      else {
        throw ValidationError(
          "a window is LEFT,RIGHT: two whole numbers of at least 0, or nothing for unlimited"
        )
      }
      mask = .sliding(left: sides[0], right: sides[1])
    }
  }

  func validate() throws {
    if let prefix, prefix < 0 {
      throw ValidationError("--prefix is \(prefix); it must be at least 0")
    }
    // A prefix is causal, so that both may be said.
    let isPlainCausal = causal == true && prefix == nil
    let causalFlag = isPlainCausal ? "--causal" : causal == false ? "--no-causal" : nil
    let given = [causalFlag, window.map { _ in "--window" }, prefix.map { _ in "--prefix" }]
      .compactMap(\.self)
    if given.count > 1 {
      throw ValidationError(
        "\(given.joined(separator: " and ")) contradict each other: a mask is one of full, causal, "
          + "causal with a prefix, and a window"
      )
    }
  }

  /// The mask that was asked for, or nil where nothing was said.
  var explicit: AttentionMask? {
    prefix.map { .prefixCausal(prefix: $0) } ?? window?.mask ?? causal.map { $0 ? .causal : .full }
  }

  /// The mask; full where nothing was said.
  var mask: AttentionMask { explicit ?? .full }
}

extension AttentionMask {
  /// The mask in words: `full`, `causal`, `window 128,0`.
  var name: String {
    switch self {
    case .full: "full"
    case .causal: "causal"
    case .prefixCausal(let prefix): "prefix \(prefix)"
    case .sliding(let left, let right):
      "window \(left.map(String.init) ?? ""),\(right.map(String.init) ?? "")"
    }
  }
}
