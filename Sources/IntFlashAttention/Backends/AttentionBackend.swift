/// Something that can compute attention: it makes kernels for descriptors.
///
/// Pass one to ``AttentionPlan``: there is no global registry.
public protocol AttentionBackend: Sendable {
  /// The name that `intfa --backend` takes.
  var name: String { get }

  /// A kernel for this descriptor: chooses instruction set and tile sizes, touches no data.
  ///
  /// - Throws: `AttentionError` with code `.unsupported` where this backend does not compute the
  ///   recipe, `.unavailable` where the machine lacks what it needs.
  func makeKernel(for descriptor: AttentionDescriptor) throws(AttentionError) -> any AttentionKernel
}

/// The computation of one descriptor, ready to run on any data of that shape.
public protocol AttentionKernel: Sendable {
  /// What was chosen, for people.
  var summary: PlanSummary { get }

  /// Computes; blocks until the output is written. Safe to call from several threads at once.
  ///
  /// - Throws: `AttentionError` with code `.nonFiniteInput`, `.valueOutOfRange` or `.outOfMemory`;
  ///   then nothing has been written.
  func run(_ operands: AttentionOperands) throws(AttentionError)
}

/// A kernel that prepares its operands before a tile loop, so that the two can be timed apart.
package protocol StagedKernel: AttentionKernel {
  /// As ``AttentionKernel/run(_:)``, with a call of `beforeTileLoop` between the pre-pass and the
  /// tile loop. A kernel without work to do does not call it.
  func run(
    _ operands: AttentionOperands,
    beforeTileLoop: () -> Void
  ) throws(AttentionError)
}

extension StagedKernel {
  package func run(_ operands: AttentionOperands) throws(AttentionError) {
    try run(operands) {}
  }
}

/// The checked operands of one call, as a plan hands them to a kernel.
///
/// Shapes are `[B, H, N, D]`, element types allowed, inner strides 1, and the output overlaps
/// nothing. It must not outlive the call. What it holds is visible inside this package only.
@safe
public struct AttentionOperands: @unchecked Sendable {
  // Sendable: a kernel's threads share the inputs and write rows of the output that do not overlap.
  @safe
  package struct Operand {
    package let base: UnsafeMutableRawPointer
    package let elementType: ElementType
    package let shape: [Int]
    package let strides: [Int]

    package init(_ view: borrowing TensorView) {
      unsafe base = UnsafeMutableRawPointer(mutating: view.base)
      elementType = view.elementType
      shape = view.shape
      strides = view.strides
    }

    /// The operand as a view, which must not outlive the call.
    package var view: TensorView {
      @_lifetime(immortal)
      get {
        unsafe TensorView(
          unsafeBase: UnsafeRawPointer(base),
          elementType: elementType,
          shape: shape,
          strides: strides
        )
      }
    }

    /// The operand to write, which must not outlive the call.
    package var mutableView: MutableTensorView {
      @_lifetime(immortal)
      get {
        unsafe MutableTensorView(
          unsafeBase: base,
          elementType: elementType,
          shape: shape,
          strides: strides
        )
      }
    }
  }

  package let query: Operand
  package let key: Operand
  package let value: Operand
  package let output: Operand
  package var logSumExp: Operand?
  /// [B or 1, Hq or 1, Nq or 1, Nk or 1].
  package var mask: Operand?
  /// [B · Hq].
  package var alibiSlopes: [Float]?
  /// [B · Hq].
  package var sinks: [Float]?
}

/// What a plan decided: the answer to `intfa explain`.
public struct PlanSummary: Hashable, Sendable, CustomStringConvertible {
  /// Name of the backend.
  public var backend: String
  /// Name of the instruction set, or of what stands for it.
  public var instructionSet: String
  /// Keys of the first tile and of every other tile; a head with outliers in its values may have
  /// shorter ones.
  public var tileLengths: [Int]
  /// Query rows that share one pass over the keys.
  public var queryBlockLength: Int
  /// Independent pieces of work.
  public var workItemCount: Int
  /// Threads that share them.
  public var threadCount: Int
  /// Bytes beside inputs and outputs: packed keys and values, and scratch of all threads.
  public var workspaceByteCount: Int
  /// Bytes that one token's key and value take per key/value head, scales included.
  public var keyValueBytesPerToken: Double
  /// Names of the kernels that run, in order.
  public var kernels: [String]

  package init(
    backend: String,
    instructionSet: String,
    tileLengths: [Int],
    queryBlockLength: Int,
    workItemCount: Int,
    threadCount: Int,
    workspaceByteCount: Int,
    keyValueBytesPerToken: Double,
    kernels: [String]
  ) {
    self.backend = backend
    self.instructionSet = instructionSet
    self.tileLengths = tileLengths
    self.queryBlockLength = queryBlockLength
    self.workItemCount = workItemCount
    self.threadCount = threadCount
    self.workspaceByteCount = workspaceByteCount
    self.keyValueBytesPerToken = keyValueBytesPerToken
    self.kernels = kernels
  }

  /// One choice per line.
  public var description: String {
    """
    backend          \(backend)
    instruction set  \(instructionSet)
    kernels          \(kernels.joined(separator: ", "))
    tile lengths     \(tileLengths.map(String.init).joined(separator: ", then "))
    query block      \(queryBlockLength) rows
    work items       \(workItemCount) on \(threadCount) thread\(threadCount == 1 ? "" : "s")
    workspace        \(workspaceByteCount) bytes
    key and value    \(keyValueBytesPerToken) bytes per token and head
    """
  }
}
