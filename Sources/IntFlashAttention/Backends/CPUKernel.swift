internal import CAttentionKernels
import Synchronization

/// One descriptor on one instruction set: stages of a call, each cut into items for the pool.
final class CPUKernel: StagedKernel {
  let descriptor: AttentionDescriptor
  let method: CPUMethod
  let instructionSet: InstructionSet
  let tileSizes: CPUTileSizes
  let blockTable: CPUBlockTable?
  /// Workspaces of finished calls, so that steady use allocates nothing.
  private let idle = Mutex<[CPUWorkspace]>([])

  init(
    descriptor: AttentionDescriptor,
    method: CPUMethod,
    instructionSet: InstructionSet,
    threadCount: Int
  ) {
    self.descriptor = descriptor
    self.method = method
    self.instructionSet = instructionSet
    blockTable = descriptor.options.blocks.map {
      CPUBlockTable($0, keyValueLength: descriptor.shape.keyValueLength)
    }
    tileSizes = CPUTileSizes(
      shape: descriptor.shape,
      operationCount: descriptor.operationCount,
      threadCount: threadCount
    )
  }

  var summary: PlanSummary {
    let recipe = descriptor.recipe
    return PlanSummary(
      backend: "cpu",
      instructionSet: instructionSet.rawValue,
      tileLengths: [recipe.firstTileLength, recipe.tileLength],
      queryBlockLength: tileSizes.queryBlockLength,
      workItemCount: attendItemCount,
      threadCount: threadCount,
      workspaceByteCount: CPUWorkspaceLayout(self).byteCount,
      keyValueBytesPerToken: recipe.keyValueBytesPerToken(descriptor.shape),
      kernels: method.kernelNames
    )
  }

  func run(
    _ operands: AttentionOperands,
    beforeTileLoop: () -> Void
  ) throws(AttentionError) {
    guard descriptor.shape.outputShape.allSatisfy({ $0 > 0 }) else { return }
    let kept = idle.withLock { $0.popLast() }
    let workspace = if let kept { kept } else { try CPUWorkspace(CPUWorkspaceLayout(self)) }
    defer { idle.withLock { $0.append(workspace) } }
    let team = ThreadPool.shared.beginTeam(threads: threadCount)
    defer { ThreadPool.shared.endTeam(team) }
    let call = CPUCall(kernel: self, operands: operands, workspace: workspace, team: team)
    try call.survey()
    try call.surveyMask()
    call.findMeans()
    call.findValueScales()
    call.pack()
    beforeTileLoop()
    call.attend()
  }

  // MARK: Counts

  var threadCount: Int { tileSizes.threadCount }
  /// Pieces of the first pass over one head of queries, or of keys or values.
  var querySurveyCount: Int {
    CPUTileSizes.pieceCount(descriptor.shape.queryLength, tileSizes.surveyLength)
  }
  var keySurveyCount: Int {
    CPUTileSizes.pieceCount(descriptor.shape.keyValueLength, tileSizes.surveyLength)
  }
  /// Pieces in which one head of keys or values is quantised.
  var keyPieceCount: Int {
    CPUTileSizes.pieceCount(descriptor.shape.keyValueLength, tileSizes.packLength)
  }
  var queryHeadCount: Int { descriptor.shape.batchCount * descriptor.shape.queryHeadCount }
  var keyHeadCount: Int { descriptor.shape.batchCount * descriptor.shape.keyValueHeadCount }
  var surveyItemCount: Int { queryHeadCount * querySurveyCount + 2 * keyHeadCount * keySurveyCount }
  var queryBlockCount: Int {
    CPUTileSizes.pieceCount(descriptor.shape.queryLength, tileSizes.queryBlockLength)
  }
  var attendItemCount: Int { queryHeadCount * queryBlockCount }

  // MARK: Bytes

  var scratchByteCount: Int { Int(INTFA_SCRATCH_BYTES) }

  var keyBytesPerHead: Int {
    let shape = descriptor.shape
    if var formats = method.runningFormats {
      return Int(
        unsafe instructionSet.kernels.running_key_bytes(
          &formats,
          Int64(shape.keyValueLength),
          Int32(shape.headDimension)
        )
      )
    }
    return Int(
      unsafe instructionSet.kernels.key_bytes(
        Int64(shape.keyValueLength),
        Int32(shape.headDimension),
        method.hasInt4Key
      )
    )
  }
  var valueBytesPerHead: Int {
    let shape = descriptor.shape
    if var formats = method.runningFormats {
      return Int(
        unsafe instructionSet.kernels.running_value_bytes(
          &formats,
          Int64(shape.keyValueLength),
          Int32(shape.valueDimension)
        )
      )
    }
    return Int(
      unsafe instructionSet.kernels.value_bytes(
        Int64(shape.keyValueLength),
        Int32(shape.valueDimension),
        method.hasInt4Value
      )
    )
  }
}

extension CPUMethod {
  var isTiled: Bool { if case .tiles = self { true } else { false } }
  /// The unit of the kernel's logits: so many make a power of two.
  var logitSteps: Float { isTiled ? 64 : 1 }
  var hasIntegerScores: Bool {
    switch self {
    case .tiles, .running(.int8, _): true
    case .running(.float, _): false
    }
  }
  var hasIntegerValues: Bool {
    switch self {
    case .tiles, .running(_, .int8): true
    case .running(_, .float): false
    }
  }
  var hasInt4Key: Bool { if case .tiles(true, _) = self { true } else { false } }
  var hasInt4Value: Bool { if case .tiles(_, true) = self { true } else { false } }
}
