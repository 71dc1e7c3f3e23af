internal import CAttentionKernels
public import IntFlashAttention

/// Keys and values of sequences on a GPU, quantised once to INT8, as they come; for decoding.
///
/// ```swift
/// let cache = try CUDAKVCache(
///   keyValueHeadCount: 2, headDimension: 128, capacity: 8192, on: device)
/// try cache.append(key: key, value: value, on: stream)   // [B, Hkv, n, D]
/// try cache.attend(query: query, into: output, on: stream)  // the last n tokens of each sequence
/// ```
///
/// All sequences have the same number of tokens. Nothing waits for the GPU but ``check(on:)``.
///
/// **Recipe.** `int8` with statistics that do not change: the mean of the keys and the unit of the
/// values' scales are those of the first 64 tokens; queries are not centred. Until there are 64, the
/// tokens are kept as they came and quantised anew when others come. What a later token is stored as
/// does not depend on how many came at once. Query heads of a group stand side by side in a tile, so
/// that decoding reads every byte of the cache once, and long caches are computed in parts that are
/// merged.
///
/// A cache belongs to one task and one stream at a time.
public final class CUDAKVCache {
  /// B.
  public let batchCount: Int
  /// Hkv.
  public let keyValueHeadCount: Int
  /// D.
  public let headDimension: Int
  /// Dv.
  public let valueDimension: Int
  /// Tokens that every sequence has room for.
  public let capacity: Int
  /// Where it is.
  public let device: CUDADevice
  /// Tokens of every sequence.
  public private(set) var count = 0

  static let recipe = Precision.int8.streamingRecipe ?? Precision.int8.recipe

  let layout: CUDACacheLayout
  let memory: DeviceMemory
  private let compiled: KernelCache
  private var modules: [Int: CUDAModule] = [:]
  private var workspace: DeviceMemory?
  /// Workspaces that became too small: to free one would wait for the device.
  private var outgrown: [DeviceMemory] = []
  private var lastCall: AttentionDescriptor?

  /// Bytes that one token takes in one key/value head, scales included.
  public var bytesPerToken: Int { 2 * layout.dimension + 17 }

  /// Takes memory for a number of tokens and compiles the kernels.
  ///
  /// - Parameters:
  ///   - batchCount: sequences.
  ///   - keyValueHeadCount: Hkv.
  ///   - headDimension: D, 1…256.
  ///   - valueDimension: Dv, 1…256; nil is D.
  ///   - capacity: tokens that every sequence has room for.
  ///   - device: where.
  /// - Throws: `AttentionError` with code `.invalidArgument`, `.unavailable`, `.unsupported`,
  ///   `.outOfMemory` or `.deviceFailure`.
  public convenience init(
    batchCount: Int = 1,
    keyValueHeadCount: Int,
    headDimension: Int,
    valueDimension: Int? = nil,
    capacity: Int,
    on device: CUDADevice
  ) throws(AttentionError) {
    let shape = try AttentionShape(
      batchCount: batchCount,
      queryHeadCount: keyValueHeadCount,
      keyValueHeadCount: keyValueHeadCount,
      queryLength: 1,
      keyValueLength: capacity,
      headDimension: headDimension,
      valueDimension: valueDimension
    )
    try self.init(shape, on: device, compiled: KernelCache())
  }

  package init(
    _ shape: AttentionShape,
    on device: CUDADevice,
    compiled: KernelCache
  ) throws(AttentionError) {
    guard shape.keyValueLength >= 1, shape.keyValueLength <= CUDABackend.largestLength else {
      throw AttentionError(
        .invalidArgument,
        "capacity is \(shape.keyValueLength); it must be between 1 and \(CUDABackend.largestLength)"
      )
    }
    try CUDABackend.requireSupported(device)
    batchCount = shape.batchCount
    keyValueHeadCount = shape.keyValueHeadCount
    headDimension = shape.headDimension
    valueDimension = shape.valueDimension
    capacity = shape.keyValueLength
    self.device = device
    self.compiled = compiled
    layout = CUDACacheLayout(shape)
    memory = try DeviceMemory(byteCount: layout.byteCount, on: CUDAContext.of(device))
    // Kernels read whole tiles: what is behind the last token must be finite.
    let stream = try CUDAStream(on: device)
    try memory.clear(on: stream)
    try stream.clearStatus(memory.address)
    try stream.synchronize()
    _ = try module(rows: 1)
  }

  /// Forgets all tokens.
  public func removeAll() { count = 0 }

  // MARK: Append

  /// Puts the quantisation of new tokens into the work of a stream and returns.
  ///
  /// - Parameters:
  ///   - key: [B, Hkv, n, D], of float32, float16 or bfloat16.
  ///   - value: [B, Hkv, n, Dv].
  ///   - stream: where the work goes.
  /// - Throws: `AttentionError` with code `.shapeMismatch`, `.unsupportedElementType`, `.outOfPages`
  ///   where there is no room, or `.deviceFailure`. Elements that are refused are found on the device,
  ///   see ``check(on:)``.
  public func append(
    key: borrowing DeviceTensor,
    value: borrowing DeviceTensor,
    on stream: CUDAStream
  ) throws(AttentionError) {
    let tokens = key.shape.count == 4 ? key.shape[2] : 0
    try CUDACall.require(key, "key", [batchCount, keyValueHeadCount, tokens, headDimension])
    try CUDACall.require(value, "value", [batchCount, keyValueHeadCount, tokens, valueDimension])
    guard tokens <= capacity - count else {
      throw AttentionError(
        .outOfPages,
        "\(tokens) tokens do not fit: the cache has \(count) and room for \(capacity)"
      )
    }
    guard tokens > 0 else { return }
    let work = CUDACacheAppend(
      cache: self,
      module: try module(rows: 1),
      stream: stream,
      key: CUDACall.Operand(key),
      value: CUDACall.Operand(value)
    )
    try work.run()
    count += tokens
  }

  // MARK: Attend

  /// Puts attention of the last tokens of every sequence, whose keys and values are in the cache
  /// already, into the work of a stream and returns.
  ///
  /// - Parameters:
  ///   - query: [B, Hq, n, D], of float32, float16 or bfloat16; Hq is a multiple of Hkv.
  ///   - output: [B, Hq, n, Dv].
  ///   - options: scale and mask; causal unless given. Soft caps, prefixes and blocks are refused.
  ///   - stream: where the work goes; tensors and cache must live until it has come past the call.
  /// - Throws: `AttentionError` with code `.shapeMismatch`, `.unsupportedElementType`,
  ///   `.overlappingOutput`, `.unsupported`, `.outOfMemory` or `.deviceFailure`.
  public func attend(
    query: borrowing DeviceTensor,
    into output: borrowing DeviceTensor,
    options: AttentionOptions = AttentionOptions(mask: .causal),
    on stream: CUDAStream
  ) throws(AttentionError) {
    try attend(query, output, logSumExp: nil, options, stream)
  }

  /// As ``attend(query:into:options:on:)``, with the log-sum-exp of every row, float32 [B, Hq, n].
  ///
  /// - Throws: as ``attend(query:into:options:on:)``.
  public func attend(
    query: borrowing DeviceTensor,
    into output: borrowing DeviceTensor,
    logSumExp: borrowing DeviceTensor,
    options: AttentionOptions = AttentionOptions(mask: .causal),
    on stream: CUDAStream
  ) throws(AttentionError) {
    try CUDACall.require(logSumExp, "logSumExp", Array(query.shape.prefix(3)), [.float32])
    try attend(query, output, logSumExp: CUDACall.Operand(logSumExp), options, stream)
  }

  private func attend(
    _ query: borrowing DeviceTensor,
    _ output: borrowing DeviceTensor,
    logSumExp: CUDACall.Operand?,
    _ options: AttentionOptions,
    _ stream: CUDAStream
  ) throws(AttentionError) {
    guard query.shape.count == 4 else {
      throw AttentionError(
        .shapeMismatch,
        "query has shape \(query.shape); it must be [B, Hq, n, D]"
      )
    }
    let (heads, tokens) = (query.shape[1], query.shape[2])
    try CUDACall.require(query, "query", [batchCount, heads, tokens, headDimension])
    try CUDACall.require(output, "output", [batchCount, heads, tokens, valueDimension])
    let operands = (query: CUDACall.Operand(query), output: CUDACall.Operand(output))
    try CUDACall.requireOwnMemory(
      output: operands.output,
      logSumExp: logSumExp,
      apartFrom: ["query": operands.query]
    )
    let shape = try AttentionShape(
      batchCount: batchCount,
      queryHeadCount: heads,
      keyValueHeadCount: keyValueHeadCount,
      queryLength: tokens,
      keyValueLength: count,
      headDimension: headDimension,
      valueDimension: valueDimension
    )
    try CUDABackend.requireSupported(options)
    guard tokens * shape.groupSize <= CUDABackend.largestLength else {
      throw AttentionError(
        .unsupported,
        "\(tokens) queries of \(shape.groupSize) heads a group are more than a call on a cache takes"
      )
    }
    let call = try AttentionDescriptor(shape: shape, recipe: Self.recipe, options: options)
    lastCall = call
    guard shape.outputShape.allSatisfy({ $0 > 0 }) else { return }
    let sizes = CUDATileSizes(
      cached: shape,
      multiprocessorCount: device.multiprocessorCount
    )
    let needed = CUDACacheWorkspace(shape, sizes)
    let workspace = try workspace(byteCount: needed.byteCount)
    let work = CUDACacheAttend(
      cache: self,
      module: try module(rows: tokens * shape.groupSize),
      descriptor: call,
      sizes: sizes,
      layout: needed,
      workspace: workspace.address,
      stream: stream,
      query: operands.query,
      output: operands.output,
      logSumExp: logSumExp
    )
    try work.run()
  }

  /// Waits for a stream and throws where an element of any call was refused; then the cache is not to
  /// be used any more.
  ///
  /// - Throws: `AttentionError` with code `.nonFiniteInput`, `.valueOutOfRange` or `.deviceFailure`.
  public func check(on stream: CUDAStream) throws(AttentionError) {
    let status = try stream.status(memory.address)
    let first = [status.first_bad.0, status.first_bad.1, status.first_bad.2]
    for (tensor, place) in zip(InputCheck.Tensor.allCases, first) where place != .max {
      throw AttentionError(
        .nonFiniteInput,
        "\(tensor.rawValue) has an element that is not finite or too large"
      )
    }
    if let lastCall { try status.requireAccepted(lastCall) }
  }

  /// Memory for a call; it at least doubles when it grows, as caches do token by token.
  private func workspace(byteCount: Int) throws(AttentionError) -> DeviceMemory {
    if let workspace, workspace.byteCount >= byteCount { return workspace }
    let size = max(byteCount, 2 * (workspace?.byteCount ?? 0))
    let fresh = try DeviceMemory(byteCount: size, on: memory.context)
    if let workspace { outgrown.append(workspace) }
    workspace = fresh
    return fresh
  }

  /// The kernels for blocks of as many query rows as a call with `rows` has.
  private func module(rows: Int) throws(AttentionError) -> CUDAModule {
    let sizes = CUDATileSizes(
      cached: try AttentionShape(
        queryHeadCount: 1,
        keyValueHeadCount: 1,
        queryLength: rows,
        keyValueLength: 1,
        headDimension: headDimension,
        valueDimension: valueDimension
      ),
      multiprocessorCount: 1
    )
    if let module = modules[sizes.queryBlockLength] { return module }
    let module = try CUDAModule.of(
      KernelSource(cached: sizes),
      sharedByteCount: sizes.sharedByteCount,
      on: device,
      cache: compiled
    )
    modules[sizes.queryBlockLength] = module
    return module
  }
}
