package import IntFlashAttention

/// Calls whose memory is the caller's altogether: nothing is kept from one to the next.
extension CUDAKernel {
  /// Bytes of device memory that a call works in.
  package var workspaceByteCount: Int { layout.byteCount }

  /// A workspace begins at multiples of this.
  private static let workspaceAlignment: UInt = 256

  /// Puts attention into the work of a stream and returns; nothing waits and nothing is allocated.
  ///
  /// - Parameters:
  ///   - operands: checked by a plan; their addresses are the device's.
  ///   - workspace: address of ``workspaceByteCount`` bytes that nothing else uses until the stream has
  ///     come past the call.
  ///   - stream: of the kernel's context.
  /// - Throws: `AttentionError` with code `.invalidArgument` for an address that is not one of this
  ///   device, or `.deviceFailure`.
  package func enqueue(
    _ operands: AttentionOperands,
    workspace: UInt,
    on stream: CUDAStream
  ) throws(AttentionError) {
    guard descriptor.shape.outputShape.allSatisfy({ $0 > 0 }) else { return }
    try requireWorkspace(workspace)
    for (name, operand) in [
      ("query", operands.query), ("key", operands.key), ("value", operands.value),
      ("output", operands.output), ("log_sum_exp", operands.logSumExp),
    ] as [(String, AttentionOperands.Operand?)] {
      guard let operand, operand.shape.allSatisfy({ $0 > 0 }) else { continue }
      try requireOnDevice(unsafe UInt(bitPattern: operand.base), name)
    }
    let call = CUDACall(
      kernel: self,
      base: UInt64(workspace),
      stream: stream,
      query: CUDACall.Operand(operands.query),
      key: CUDACall.Operand(operands.key),
      value: CUDACall.Operand(operands.value),
      output: CUDACall.Operand(operands.output),
      logSumExp: operands.logSumExp.map { CUDACall.Operand($0) }
    )
    try call.run()
  }

  /// Waits for a stream and throws where the inputs of the last call in this workspace were refused.
  ///
  /// - Throws: `AttentionError` with code `.nonFiniteInput`, `.valueOutOfRange`, `.invalidArgument` or
  ///   `.deviceFailure`.
  package func check(workspace: UInt, on stream: CUDAStream) throws(AttentionError) {
    guard descriptor.shape.outputShape.allSatisfy({ $0 > 0 }) else {
      return try stream.synchronize()
    }
    try requireWorkspace(workspace)
    try stream.status(UInt64(workspace)).requireAccepted(descriptor)
  }

  private func requireWorkspace(_ address: UInt) throws(AttentionError) {
    guard address != 0 else {
      throw AttentionError(
        .invalidArgument,
        "workspace is NULL; this plan works in \(workspaceByteCount) bytes of device memory"
      )
    }
    guard address.isMultiple(of: Self.workspaceAlignment) else {
      throw AttentionError(
        .invalidArgument,
        "workspace is not aligned to \(Self.workspaceAlignment) bytes"
      )
    }
    try requireOnDevice(address, "workspace")
  }

  /// Refuses what the driver does not know as memory of this device: a kernel that reads it would
  /// end the context, and with it all that the process has on the GPU.
  private func requireOnDevice(_ address: UInt, _ name: String) throws(AttentionError) {
    guard let ordinal = try module.context.ordinal(ofMemoryAt: UInt64(address)) else {
      throw AttentionError(
        .invalidArgument,
        "\(name) is at address 0x\(String(address, radix: 16)), which is not in the memory of a GPU"
      )
    }
    guard ordinal == device.ordinal else {
      throw AttentionError(
        .invalidArgument,
        "\(name) is in the memory of GPU \(ordinal), but the plan is for GPU \(device.ordinal)"
      )
    }
  }
}

extension CUDACall.Operand {
  /// An operand whose address is a device's.
  fileprivate init(_ operand: AttentionOperands.Operand) {
    self.init(
      address: unsafe UInt64(UInt(bitPattern: operand.base)),
      elementType: operand.elementType,
      shape: operand.shape,
      strides: operand.strides
    )
  }
}
