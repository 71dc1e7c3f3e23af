#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif
internal import CAttentionKernels

/// Attention on the processor: tiled, multi-threaded, memory linear in the number of tokens.
public struct CPUBackend: AttentionBackend {
  /// Threads that a call may use.
  ///
  /// nil is one per physical core that the process may run on, or fewer where a control group grants
  /// less time. There are never more than processors that the process may run on, and small calls use
  /// fewer.
  public let threadCount: Int?
  /// The instructions to use; nil is what the environment variable `INTFA_ISA` names, else the
  /// fastest that the machine has.
  public let instructionSet: InstructionSet?

  /// A backend with these choices; they are checked when a kernel is made.
  public init(threadCount: Int? = nil, instructionSet: InstructionSet? = nil) {
    self.threadCount = threadCount
    self.instructionSet = instructionSet
  }

  /// `cpu`.
  public var name: String { "cpu" }

  /// A kernel for every named precision but `int4QueryKey`.
  ///
  /// - Throws: `AttentionError` with code `.unsupported` for a recipe that is computed by
  ///   ``ReferenceBackend`` only, `.unavailable` for an instruction set that this machine or build
  ///   does not have, `.invalidArgument` for fewer than one thread or an unknown name in
  ///   `INTFA_ISA`.
  public func makeKernel(
    for descriptor: AttentionDescriptor
  ) throws(AttentionError) -> any AttentionKernel {
    if let threadCount, threadCount < 1 {
      throw AttentionError(
        .invalidArgument,
        "threadCount is \(threadCount); it must be at least 1, or nil for all"
      )
    }
    guard let method = CPUMethod(descriptor.recipe) else {
      throw AttentionError(
        .unsupported,
        "the CPU backend has no kernel for this recipe; ReferenceBackend computes it"
      )
    }
    return CPUKernel(
      descriptor: descriptor,
      method: method,
      instructionSet: try chosenInstructionSet(),
      threadCount: ThreadPool.shared.seatCount(threadCount)
    )
  }

  /// The instruction set that calls of this backend use.
  ///
  /// - Throws: `AttentionError` with code `.unavailable` or, for an unknown name in the environment,
  ///   `.invalidArgument`.
  public func chosenInstructionSet() throws(AttentionError) -> InstructionSet {
    var chosen = instructionSet
    let environment = unsafe getenv("INTFA_ISA").map { unsafe String(cString: $0) } ?? ""
    if chosen == nil, !environment.isEmpty {
      let name = environment
      guard let named = InstructionSet(rawValue: name) else {
        throw AttentionError(
          .invalidArgument,
          "INTFA_ISA is '\(name)'; it must be one of "
            + InstructionSet.allCases.map(\.rawValue).joined(separator: ", ")
        )
      }
      chosen = named
    }
    guard let chosen else { return .best }
    guard chosen.isSupported else {
      throw AttentionError(
        .unavailable,
        "instruction set \(chosen.rawValue) is not available here; this machine has "
          + InstructionSet.supported.map(\.rawValue).joined(separator: ", ")
      )
    }
    return chosen
  }
}

/// Which of the two tile loops computes a recipe, and with what.
enum CPUMethod: Hashable, Sendable {
  /// Integer scores, tile-local unsigned P, integer values.
  case tiles(int4Key: Bool, int4Value: Bool)
  /// P against the running maximum.
  case running(scores: Scores, values: Values)

  enum Scores: Hashable, Sendable {
    case int8
    case float(OperandFormat)
  }

  enum Values: Hashable, Sendable {
    /// One scale per head, signed P.
    case int8
    case float(OperandFormat, QuantizationRecipe.Probability)
  }

  /// nil where no kernel computes the recipe.
  init?(_ recipe: QuantizationRecipe) {
    let lengths = [recipe.firstTileLength, recipe.tileLength]
    // Tiles are made of packed units.
    guard
      lengths.allSatisfy({ $0 <= Int(INTFA_MAX_TILE) && $0.isMultiple(of: Int(INTFA_PACK_UNIT)) })
    else { return nil }
    let centring = recipe.queryCentering
    guard centring == .none || centring == .head else { return nil }
    if recipe.exponential == .table64 {
      self.init(tiles: recipe)
    } else {
      self.init(running: recipe)
    }
  }

  private init?(tiles recipe: QuantizationRecipe) {
    let int4Key = recipe.key == .int4Progressive(tokens: 32, channels: 1)
    let int4Value = recipe.value == .int4Progressive(tokens: 1, channels: 16)
    guard recipe.query == .int8(.token),
      int4Key || recipe.key == .int8(.token),
      int4Value || recipe.value == .int8(.token),
      recipe.rowSum == .automatic
    else { return nil }
    self = .tiles(int4Key: int4Key, int4Value: int4Value)
  }

  private init?(running recipe: QuantizationRecipe) {
    guard recipe.reference == .runningMaximum, recipe.rowSum == .exact,
      recipe.valueScale == .output, !recipe.rotatesValue
    else { return nil }
    let scores: Scores
    switch (recipe.query, recipe.key) {
    case (.int8(.token), .int8(.token)): scores = .int8
    case (.float32, .float32), (.bfloat16, .bfloat16), (.float16, .float16),
      (.float8(.tensor), .float8(.tensor)):
      guard !recipe.rotatesQueryAndKey, !recipe.centersKey, recipe.queryCentering == .none else {
        return nil
      }
      scores = .float(recipe.query)
    default: return nil
    }
    switch (recipe.value, recipe.probability) {
    case (.int8(.tensor), .signed8): self = .running(scores: scores, values: .int8)
    case (.float32, let p), (.bfloat16, let p), (.float16, let p), (.float8(.tensor), let p):
      guard p != .signed8, p != .unsigned8 else { return nil }
      self = .running(scores: scores, values: .float(recipe.value, p))
    default: return nil
    }
  }

  /// Names of the kernels that run, in order.
  var kernelNames: [String] {
    switch self {
    case .tiles(let int4Key, let int4Value):
      [
        "survey", "quantize", "attend_tiles" + (int4Value ? "_kv4" : int4Key ? "_k4" : ""),
        "finish",
      ]
    case .running(.int8, _): ["survey", "quantize", "attend_running", "finish"]
    case .running(.float, _): ["survey", "pack", "attend_running", "finish"]
    }
  }
}
