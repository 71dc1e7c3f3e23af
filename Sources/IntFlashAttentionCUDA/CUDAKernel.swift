internal import CAttentionKernels
public import IntFlashAttention
import Synchronization

/// The computation of one descriptor on one GPU.
public final class CUDAKernel: AttentionKernel {
  /// What is computed.
  public let descriptor: AttentionDescriptor
  /// Where.
  public let device: CUDADevice
  let method: CUDAMethod
  let sizes: CUDATileSizes
  let layout: CUDAWorkspaceLayout
  let module: CUDAModule
  /// Streams and memory of calls on host tensors that have ended.
  private let idle = Mutex<[Place]>([])
  /// Memory of calls on device tensors: those of one stream run one after the other and share it.
  private let ofStream = Mutex<[UInt: DeviceMemory]>([:])

  private struct Place {
    let stream: CUDAStream
    let memory: DeviceMemory
  }

  init(
    descriptor: AttentionDescriptor,
    method: CUDAMethod,
    device: CUDADevice,
    cache: KernelCache
  ) throws(AttentionError) {
    self.descriptor = descriptor
    self.method = method
    self.device = device
    sizes = CUDATileSizes(
      shape: descriptor.shape,
      method: method,
      major: device.major,
      multiprocessorCount: device.multiprocessorCount
    )
    layout = CUDAWorkspaceLayout(descriptor.shape, method, sizes)
    module = try CUDAModule.of(
      KernelSource(method, sizes),
      sharedByteCount: sizes.sharedByteCount,
      on: device,
      cache: cache
    )
  }

  /// What was chosen; `threadCount` is that of a block, work items are blocks.
  public var summary: PlanSummary {
    let tiles = [sizes.tileLength - sizes.tileLead, sizes.tileLength]
    let merge = sizes.splitCount > 1 ? ["merge \(sizes.splitCount) splits"] : []
    let prepass =
      method.hasIntegerProducts ? ["survey", "means", "quantize"] : ["survey", "convert"]
    return PlanSummary(
      backend: "cuda",
      instructionSet: device.architecture,
      tileLengths: tiles,
      queryBlockLength: sizes.queryBlockLength,
      workItemCount: sizes.blockCount * sizes.splitCount,
      threadCount: sizes.threadCount,
      workspaceByteCount: layout.byteCount,
      keyValueBytesPerToken: descriptor.recipe.keyValueBytesPerToken(descriptor.shape),
      kernels: prepass + ["attend_\(sizes.family.rawValue)"] + merge
    )
  }

  // MARK: Tensors on the device

  /// Puts attention into the work of a stream and returns.
  ///
  /// Nothing waits: the host goes on at once, and the work is in the order of the stream, which may be
  /// another library's. The first call in a stream takes memory for it.
  ///
  /// **Shapes and types** as ``AttentionPlan/run(query:key:value:into:)``, all tensors in the memory of
  /// ``device``. They must live until the stream has come past the call; so must the kernel.
  ///
  /// **Refused inputs.** NaN, infinite and too large elements are found on the device, so the call
  /// cannot throw for them: then the output is meaningless, and ``check(on:)`` throws.
  ///
  /// - Throws: `AttentionError` with code `.shapeMismatch`, `.unsupportedElementType`,
  ///   `.overlappingOutput`, `.outOfMemory` or `.deviceFailure`.
  public func enqueue(
    query: borrowing DeviceTensor,
    key: borrowing DeviceTensor,
    value: borrowing DeviceTensor,
    into output: borrowing DeviceTensor,
    on stream: CUDAStream
  ) throws(AttentionError) {
    try enqueue(query, key, value, output, logSumExp: nil, on: stream)
  }

  /// As ``enqueue(query:key:value:into:on:)``, with the log-sum-exp of every row, float32
  /// [B, Hq, Nq].
  ///
  /// - Throws: as ``enqueue(query:key:value:into:on:)``.
  public func enqueue(
    query: borrowing DeviceTensor,
    key: borrowing DeviceTensor,
    value: borrowing DeviceTensor,
    into output: borrowing DeviceTensor,
    logSumExp: borrowing DeviceTensor,
    on stream: CUDAStream
  ) throws(AttentionError) {
    let shape = descriptor.shape.logSumExpShape
    try CUDACall.require(logSumExp, "logSumExp", shape, [.float32])
    try enqueue(query, key, value, output, logSumExp: CUDACall.Operand(logSumExp), on: stream)
  }

  /// Waits for a stream and throws where the inputs of the last call in it were refused.
  ///
  /// - Throws: `AttentionError` with code `.nonFiniteInput` or `.valueOutOfRange`.
  public func check(on stream: CUDAStream) throws(AttentionError) {
    let memory = ofStream.withLock { $0[stream.number] }
    guard let memory else { return try stream.synchronize() }
    let status = try stream.status(memory.address)
    try status.requireAccepted(descriptor)
  }

  private func enqueue(
    _ query: borrowing DeviceTensor,
    _ key: borrowing DeviceTensor,
    _ value: borrowing DeviceTensor,
    _ output: borrowing DeviceTensor,
    logSumExp: CUDACall.Operand?,
    on stream: CUDAStream,
    timer: CUDATimer? = nil
  ) throws(AttentionError) {
    let shape = descriptor.shape
    try CUDACall.require(query, "query", shape.queryShape)
    try CUDACall.require(key, "key", shape.keyShape)
    try CUDACall.require(value, "value", shape.valueShape)
    try CUDACall.require(output, "output", shape.outputShape)
    let operands = (
      query: CUDACall.Operand(query), key: CUDACall.Operand(key), value: CUDACall.Operand(value),
      output: CUDACall.Operand(output)
    )
    try CUDACall.requireOwnMemory(
      output: operands.output,
      logSumExp: logSumExp,
      apartFrom: ["query": operands.query, "key": operands.key, "value": operands.value]
    )
    guard shape.outputShape.allSatisfy({ $0 > 0 }) else { return }
    var memory = ofStream.withLock { $0[stream.number] }
    if memory == nil {
      let fresh = try workspace()
      memory = ofStream.withLock { known in
        let kept = known[stream.number] ?? fresh
        known[stream.number] = kept
        return kept
      }
    }
    guard let memory else { return }
    let call = CUDACall(
      kernel: self,
      base: memory.address,
      stream: stream,
      query: operands.query,
      key: operands.key,
      value: operands.value,
      output: operands.output,
      logSumExp: logSumExp,
      timer: timer
    )
    try call.run()
  }

  /// As ``enqueue(query:key:value:into:on:)``, with events around the call and around its tile loop.
  package func enqueueTimed(
    query: borrowing DeviceTensor,
    key: borrowing DeviceTensor,
    value: borrowing DeviceTensor,
    into output: borrowing DeviceTensor,
    on stream: CUDAStream
  ) throws(AttentionError) -> CUDATimer {
    let timer = try CUDATimer(on: stream)
    try enqueue(query, key, value, output, logSumExp: nil, on: stream, timer: timer)
    try timer.end(on: stream)
    return timer
  }

  // MARK: Tensors on the host

  /// Computes on tensors of the host: copies them to the device and the result back.
  ///
  /// - Throws: as `AttentionKernel.run`, and `.deviceFailure`.
  public func run(_ operands: AttentionOperands) throws(AttentionError) {
    for (name, isGiven) in [
      ("mask", operands.mask != nil), ("alibiSlopes", operands.alibiSlopes != nil),
      ("sinks", operands.sinks != nil),
    ] where isGiven {
      throw AttentionError(.unsupported, "\(name) is given; the CUDA backend does not take it")
    }
    let shape = descriptor.shape
    guard shape.outputShape.allSatisfy({ $0 > 0 }) else { return }
    let place: Place
    if let kept = idle.withLock({ $0.popLast() }) {
      place = kept
    } else {
      let stream = try CUDAStream(on: device)
      place = Place(stream: stream, memory: try workspace())
    }
    defer { idle.withLock { $0.append(place) } }
    let stream = place.stream
    let query = try operands.query.copy(to: device, on: stream)
    let key = try operands.key.copy(to: device, on: stream)
    let value = try operands.value.copy(to: device, on: stream)
    let type = operands.output.elementType
    let output = try DeviceTensor(type, shape: shape.outputShape, on: device)
    let sums = try DeviceTensor(.float32, shape: shape.logSumExpShape, on: device)
    let call = CUDACall(
      kernel: self,
      base: place.memory.address,
      stream: stream,
      query: CUDACall.Operand(query),
      key: CUDACall.Operand(key),
      value: CUDACall.Operand(value),
      output: CUDACall.Operand(output),
      logSumExp: operands.logSumExp == nil ? nil : CUDACall.Operand(sums)
    )
    try call.run()
    let status = try stream.status(place.memory.address)
    let recipe = descriptor.recipe
    try status.requireAccepted(descriptor) { tensor, batch, head, token in
      let (operand, format) =
        switch tensor {
        case .query: (operands.query, recipe.query)
        case .key: (operands.key, recipe.key)
        case .value: (operands.value, recipe.value)
        }
      return InputCheck.error(
        tensor,
        batch: batch,
        head: head,
        token: token,
        row: HeadRows(operand.view, batch: batch, head: head).row(token),
        limit: InputCheck.limit(for: format)
      )
    }
    var result = try Tensor(type, shape: shape.outputShape)
    try output.copy(to: &result, on: stream)
    var resultSums = try Tensor(.float32, shape: shape.logSumExpShape)
    if operands.logSumExp != nil { try sums.copy(to: &resultSums, on: stream) }
    operands.output.replace(by: result)
    operands.logSumExp?.replace(by: resultSums)
  }

  // MARK: Parts of both

  private func workspace() throws(AttentionError) -> DeviceMemory {
    try DeviceMemory(byteCount: layout.byteCount, on: module.context)
  }
}

extension AttentionOperands.Operand {
  /// A row-major copy on the device.
  func copy(
    to device: CUDADevice,
    on stream: CUDAStream
  ) throws(AttentionError) -> DeviceTensor {
    let result = try DeviceTensor(elementType, shape: shape, on: device)
    guard shape.allSatisfy({ $0 > 0 }) else { return result }
    if strides == TensorGeometry.contiguousStrides(shape, elementType) {
      unsafe try stream.upload(base, to: result.place, byteCount: result.byteCount)
      try stream.synchronize()
    } else {
      let dense = try Tensor(elementType, shape: shape)
      let size = elementType.bitWidth / 8
      let rowBytes = (shape.last ?? 1) * size
      var place = 0
      view.forEachRow { offset in
        unsafe (dense.storage + place).copyMemory(from: base + offset * size, byteCount: rowBytes)
        place += rowBytes
      }
      try result.copy(from: dense, on: stream)
    }
    return result
  }

  /// Writes the elements of a row-major tensor of the same shape and type.
  func replace(by tensor: borrowing Tensor) {
    let size = elementType.bitWidth / 8
    let step = strides.last ?? 1
    var place = 0
    let source = unsafe tensor.storage
    let target = unsafe base
    let columns = shape.last ?? 1
    view.forEachRow { offset in
      for column in 0..<columns {
        unsafe (target + (offset + column * step) * size).copyMemory(
          from: source + place,
          byteCount: size
        )
        place += size
      }
    }
  }
}
